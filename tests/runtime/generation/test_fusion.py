"""Plain attention as exporters write it, rewritten to keep its cache in place; and what is left as it came.

The files in exports/ are PyTorch's own, of tiny random models: Llama, Qwen2 and GPT-2 by both of its
exporters, with attention spelled out and as scaled_dot_product_attention.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.generation import fusion
from llmesh.runtime.generation.fusion import fuse, open_graph
from llmesh.runtime.generation.graph import Graph
from llmesh.runtime.generation.layout import find_layout
from llmesh.runtime.generation.patterns import find_attention
from llmesh.runtime.generation.rows import InPlaceRows
from llmesh.runtime.generation.settings import ModelSettings, read_settings
from llmesh.runtime.generation.web import Web

EXPORTS = Path(__file__).with_name("exports")
MINI = Path(__file__).parents[3] / "llmesh/demo/gpt-mini"
TURNING = {"llama_torchscript", "llama_dynamo", "qwen2_torchscript"}
KINDS = sorted([*TURNING, "gpt2_dynamo"])


def settings(folder: Path) -> ModelSettings:
    config = {"num_attention_heads": 2, "max_position_embeddings": 160, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return read_settings(folder)


def rewritten(path: Path, values: ModelSettings) -> onnx.ModelProto | None:
    content = fuse(path, Graph(path, values, 1), values)
    return None if content is None else onnx.load_from_string(content)


def with_mask(target: Path, source: str) -> Path:
    """An export whose tokens see nothing where the input `source` is above a hundred."""
    model = onnx.load(EXPORTS / "llama_torchscript.onnx")
    attention = find_attention(Web(model), "past_key_values.0.key", "past_key_values.0.value")
    assert attention
    (place,) = (n for n, node in enumerate(model.graph.node) if attention.mask in node.output)
    model.graph.node[place].output[0] = "causal"
    values = {
        "limit": np.array(100),
        "hidden": np.float32(-1e9),
        "seen": np.float32(0),
        "axes": np.array([1, 3]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    added = [
        helper.make_node("Greater", [source, "limit"], ["above"]),
        helper.make_node("Where", ["above", "hidden", "seen"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "axes"], ["more"]),
        helper.make_node("Add", ["causal", "more"], [attention.mask]),
    ]
    for n, node in enumerate(added):
        model.graph.node.insert(place + 1 + n, node)
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_becomes_the_same_decoder_with_its_cache_in_place(kind: str, tmp_path: Path) -> None:
    path, values = EXPORTS / f"{kind}.onnx", settings(tmp_path)
    model = rewritten(path, values)
    assert model is not None
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    turned = {helper.get_node_attr_value(node, "do_rotary") for node in attentions}
    assert (len(attentions), turned) == (2, {int(kind in TURNING)})
    assert not [node for node in model.graph.node if node.op_type in ("Softmax", "Expand")]
    plain, fused = Graph(path, values, 1), open_graph(path, values, 1)
    assert fused.grouped
    assert find_layout(fused, 4).kind is InPlaceRows
    past = plain.read(list(range(20)), plain.empty())[1]
    grown = fused.read(list(range(20)), fused.empty())[1]
    expected, found = plain.read([3, 5, 7], past), fused.read([3, 5, 7], grown)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_shipped_model_is_rewritten() -> None:
    graph = open_graph(MINI / "model.onnx", read_settings(MINI), 1)
    assert graph.grouped


def test_the_logits_of_a_prompt_are_of_its_last_token(tmp_path: Path) -> None:
    values = settings(tmp_path)
    graph = open_graph(EXPORTS / "llama_dynamo.onnx", values, 1)
    feed = graph.feed(np.zeros((1, 9), np.int64), np.ones((1, 9), np.int64), np.arange(9)[None])
    past = dict(zip(graph.past, graph.empty(), strict=True))
    assert graph.run(["logits"], feed | past)[0].shape == (1, 1, graph.vocabulary)


@pytest.mark.parametrize("source", ["position_ids", "input_ids"])
def test_a_mask_that_hides_more_is_left_as_it_is(source: str, tmp_path: Path) -> None:
    """It cannot be told from a causal one by what is said of a short text."""
    path, values = with_mask(tmp_path / "model.onnx", source), settings(tmp_path)
    assert rewritten(path, values) is None
    assert not open_graph(path, values, 1).grouped


def test_a_rewriting_that_answers_otherwise_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values = EXPORTS / "llama_dynamo.onnx", settings(tmp_path)
    model = rewritten(path, values)
    assert model is not None
    for node in model.graph.node:
        for one in node.attribute:
            one.f = 8.0 if one.name == "scale" else one.f
    monkeypatch.setattr(fusion, "fuse", lambda *_: model.SerializeToString())
    assert not open_graph(path, values, 1).grouped


def test_without_the_number_of_heads_nothing_is_rewritten(tmp_path: Path) -> None:
    values = replace(settings(tmp_path), query_heads=None)
    assert rewritten(EXPORTS / "llama_dynamo.onnx", values) is None


@settings_of_hypothesis(max_examples=25, deadline=None)
@given(st.data())
def test_a_graph_with_an_operator_exchanged_is_no_other_decoder(data: st.DataObject) -> None:
    """Whatever else a node of the first layers does, the rewritten graph says what the file says."""
    model = onnx.load(EXPORTS / "llama_dynamo.onnx")
    swaps = {
        "Add": "Mul",
        "Mul": "Add",
        "Neg": "Abs",
        "Sqrt": "Exp",
        "Sigmoid": "Tanh",
        "Transpose": "Identity",
    }
    node = data.draw(st.sampled_from([one for one in model.graph.node if one.op_type in swaps]))
    node.op_type = swaps[node.op_type]
    del node.attribute[:]
    with tempfile.TemporaryDirectory() as scratch:
        path, values = Path(scratch) / "model.onnx", settings(Path(scratch))
        onnx.save(model, path)
        try:
            plain = Graph(path, values, 1)
            expected = plain.read(list(range(9)), plain.empty())[0]
        except (ModelFailed, ValidationFailed):
            return
        found = open_graph(path, values, 1)
        np.testing.assert_allclose(
            found.read(list(range(9)), found.empty())[0], expected, atol=1e-3, rtol=1e-3
        )
