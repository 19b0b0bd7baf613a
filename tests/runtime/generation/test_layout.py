"""What the trial finds out about a graph, and graphs that are no decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.graph import Graph
from llmesh.runtime.generation.layout import find_layout
from llmesh.runtime.generation.rows import AppendedRows, InPlaceRows
from llmesh.runtime.generation.settings import read_settings

MINI = Path(__file__).parents[3] / "llmesh/demo/gpt-mini"


def load(folder: Path) -> Graph:
    return Graph(folder / "model.onnx", read_settings(folder), 1)


def changed(folder: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Graph:
    target.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, target / "model.onnx")
    return load(target)


def test_batch_mates_never_reach_the_cache_of_gpt_mini() -> None:
    layout = find_layout(load(MINI), 8)
    assert (layout.kind, layout.exact) == (AppendedRows, True)
    assert layout.noise < 1e-3


@pytest.mark.parametrize("kind", [AppendedRows, InPlaceRows], ids=lambda kind: kind.__name__)
def test_rows_join_and_leave(bundle: Callable[[str], Path], kind: type[AppendedRows | InPlaceRows]) -> None:
    """A row's logits and cache are bit for bit the same with mates of any length, moved or not."""
    graph = load(bundle("plain" if kind is AppendedRows else "grouped"))
    pasts = [graph.read([5 + n] * (3 + 11 * n), graph.empty())[1] for n in range(5)]
    lone = kind(graph, 8, 1, 160)
    lone.join(pasts[2], 100)
    expected = [lone.step([token])[0].copy() for token in range(40)]
    rows = kind(graph, 8, 1, 160)
    for past in pasts[:3]:
        rows.join(past, 100)
    found = [rows.step([9, 8, token])[2].copy() for token in range(10)]
    rows.leave(0)  # the row of interest moves to number 0
    found += [rows.step([token, 8])[0].copy() for token in range(10, 20)]
    for past in pasts[3:]:
        rows.join(past, 100)
    found += [rows.step([token, 8, 7, 6])[0].copy() for token in range(20, 30)]
    for _ in range(3):
        rows.leave(1)
    found += [rows.step([token])[0].copy() for token in range(30, 40)]
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))
    assert (rows.again(0) == found[-1]).all()


def test_not_a_number_in_one_row_stays_there(bundle: Callable[[str], Path]) -> None:
    graph = load(bundle("plain"))
    past = graph.read([5] * 9, graph.empty())[1]
    poison = [np.full((1, *one.shape[1:]), np.nan, one.dtype) for one in past]
    lone, rows = AppendedRows(graph, 4, 1, 160), AppendedRows(graph, 4, 1, 160)
    lone.join(past, 60)
    rows.join(poison, 60)
    rows.join(past, 60)
    for token in range(5):
        assert (rows.step([1, token])[1] == lone.step([token])[0]).all()
    rows.leave(0)
    rows.join(past, 60)
    found = rows.step([5, 0])
    assert (found[0] == lone.step([5])[0]).all()
    assert np.isfinite(found[1]).all()


def test_a_lone_row_can_be_given_a_mate(bundle: Callable[[str], Path]) -> None:
    for kind, name in ((AppendedRows, "plain"), (InPlaceRows, "grouped")):
        graph = load(bundle(name))
        past = graph.read([5] * 9, graph.empty())[1]
        one, two = kind(graph, 4, 1, 160), kind(graph, 4, 2, 160)
        for rows in (one, two):
            rows.join(past, 60)
        for token in range(30):
            assert np.allclose(one.step([token]), two.step([token]), atol=1e-4)


def fixed_mask(model: onnx.ModelProto) -> None:
    """As GPT-2 has it: a table of the context's length, cut to the tokens there are."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(160, np.float32), "table"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "start"))
    length = helper.make_node("Shape", ["attention_mask"], ["table_length"], start=1, end=2)
    row = helper.make_node("Slice", ["table", "start", "table_length"], ["table_row"])
    for n, node in enumerate(model.graph.node):
        if node.op_type == "Where":
            node.output[0], mask = "mask_without_table", node.output[0]
            added = helper.make_node("Add", ["mask_without_table", "table_row"], [mask])
            for one in (added, row, length):
                model.graph.node.insert(n + 1, one)
            return


def test_a_mask_of_fixed_size_is_never_outgrown(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    graph = changed(bundle("plain"), tmp_path / "model", fixed_mask)
    layout = find_layout(graph, 2)
    assert (layout.kind, layout.widest) == (AppendedRows, 159)
    assert find_layout(load(bundle("plain")), 2).widest == 160
    rows = layout.open_rows(2)
    for start in (150, 20):
        rows.join(graph.read([7] * start, graph.empty())[1], 159)
    whole = graph.read([7] * 150 + [3] * 9, graph.empty())[0]
    for _ in range(9):
        logits = rows.step([3, 3])[0]
    assert np.allclose(logits, whole, atol=1e-3)


def test_a_cache_that_forgets_is_refused(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        """Every past is multiplied by zero before it is used."""
        nothing = numpy_helper.from_array(np.float32(0), "nothing")
        model.graph.initializer.append(nothing)
        for node in [node for node in model.graph.node if node.op_type == "Concat"]:
            node.input[0], past = f"{node.input[0]}_gone", node.input[0]
            model.graph.node.insert(0, helper.make_node("Mul", [past, "nothing"], [node.input[0]]))

    graph = changed(bundle("plain"), tmp_path / "model", forget)
    with pytest.raises(ValidationFailed, match="does not carry on"):
        find_layout(graph, 2)


def test_a_merged_decoder_is_told_when_it_has_a_cache(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    def merge(model: onnx.ModelProto) -> None:
        """Without the branch set, the answer is nonsense: the logits are negated."""
        model.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
        head = model.graph.node[-1]
        head.output[0] = "cached"
        past = helper.make_node("Shape", ["past_key_values.0.key"], ["past_length"], start=2, end=3)
        none = helper.make_node("Cast", ["past_length"], ["has_past"], to=TensorProto.BOOL)
        equal = helper.make_node("Equal", ["has_past", "use_cache_branch"], ["right"])
        wrong = helper.make_node("Neg", ["cached"], ["negated"])
        chosen = helper.make_node("Where", ["right", "cached", "negated"], ["logits"])
        model.graph.node.extend([past, none, equal, wrong, chosen])

    graph = changed(bundle("plain"), tmp_path / "model", merge)
    assert graph.branch
    layout = find_layout(graph, 3)
    assert layout.kind is AppendedRows
    same = load(bundle("plain"))
    assert np.allclose(graph.read([3, 4, 5], graph.empty())[0], same.read([3, 4, 5], same.empty())[0])


def unknown_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1]))


def no_past(model: onnx.ModelProto) -> None:
    for one in model.graph.input:
        one.name = one.name.replace("past_key_values", "state")
    for node in model.graph.node:
        node.input[:] = [name.replace("past_key_values", "state") for name in node.input]


def no_logits(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"


def half_a_pair(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = [
            name.replace("past_key_values.1.value", "past_key_values.0.value") for name in node.input
        ]
    kept = [one for one in model.graph.input if one.name != "past_key_values.1.value"]
    del model.graph.input[:]
    model.graph.input.extend(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_input, "also takes 'pixel_values'"),
        (no_past, "not a decoder with a cache"),
        (no_logits, "no output 'logits'"),
        (half_a_pair, "pairs of key and value"),
    ],
)
def test_a_graph_that_is_no_decoder_is_refused(
    bundle: Callable[[str], Path], tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    with pytest.raises(ValidationFailed, match=message):
        changed(bundle("plain"), tmp_path / "model", change)
