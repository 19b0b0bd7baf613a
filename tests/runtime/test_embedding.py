"""Embeddings and labels of tokens, and how it is told that a folder is for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.core.encoding import Tensor
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.batches import BatchedModel
from llmesh.runtime.graph import Stop

from .conftest import Save, model_of, opened, value
from .test_text import TOKENIZER, WORDS


def states(output: str = "last_hidden_state") -> onnx.ModelProto:
    """Each token's state is its id times (1, -1), what is padding too."""
    directions = h.make_tensor("d", T.FLOAT, [1, 2], [1.0, -1.0])
    axes = h.make_tensor("axes", T.INT64, [1], [2])
    nodes = [
        h.make_node("Cast", ["input_ids"], ["f"], to=T.FLOAT),
        h.make_node("Unsqueeze", ["f", "axes"], ["u"]),
        h.make_node("MatMul", ["u", "d"], [output]),
    ]
    given = [value(name, T.INT64, "b", "s") for name in ("input_ids", "attention_mask")]
    return model_of(nodes, given, [value(output, T.FLOAT, "b", "s", 2)], [directions, axes])


CONFIG: dict[str, Any] = {
    "tokenizer": TOKENIZER,
    "config": {"pad_token_id": 5, "max_position_embeddings": 20},
}
MEAN_ONLY = [{"type": "sentence_transformers.models.Pooling"}]


def vectors(model: BatchedModel[Any], *texts: str) -> list[Any]:
    answers = model._task.answer([model.check({"text": text}) for text in texts], Stop())
    found = []
    for answer in answers:
        tensor: Any = answer["embedding"]
        assert isinstance(tensor, Tensor)
        assert (tensor.dtype, tensor.shape) == ("float32", (2,))
        found.append(np.frombuffer(tensor.data, "<f4"))
    return found


def ids(model: BatchedModel[Any], text: str) -> list[int]:
    found: list[int] = model.check({"text": text}).encoding.ids
    return found


def test_the_mean_of_the_tokens_in_length_one(save: Save) -> None:
    model = opened(save(states(), **CONFIG))
    assert (model.task, model.batch) == ("embeddings", 8)
    assert [str(spec) for spec in model.outputs] == ["embedding: float32[2]"]
    for vector in vectors(model, "很好", "很好很好很好", "不"):
        assert vector == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-6)


@pytest.mark.parametrize(
    ("said", "pool"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, np.mean),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, lambda row: row[0]),
        ({"pooling_mode_max_tokens": True}, np.max),
        ({"pooling_mode_lasttoken": True}, lambda row: row[-1]),
        ({"pooling_mode": "cls"}, lambda row: row[0]),
        ({}, np.mean),
    ],
)
def test_pooling_as_the_folder_says(save: Save, said: dict[str, Any], pool: Any) -> None:
    model = opened(save(states(), **CONFIG, **{"1_Pooling/config": said}, modules=MEAN_ONLY))
    texts = ["很好", "很好很好很好", "不"]
    for text, vector in zip(texts, vectors(model, *texts), strict=True):
        assert vector[0] == pytest.approx(pool(ids(model, text)))


def test_a_pooling_nobody_knows_is_named(save: Save) -> None:
    for said in (
        {"pooling_mode_sqrt": True},
        {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
    ):
        folder = save(states(), **CONFIG, **{"1_Pooling/config": said})
        with pytest.raises(ValidationFailed, match=r"1_Pooling/config\.json asks for"):
            opened(folder)


def test_a_graph_that_pools_itself_is_taken_at_its_word(save: Save) -> None:
    graph = states("all")
    graph.graph.node.append(h.make_node("ReduceMax", ["all"], ["sentence_embedding"], axes=[1], keepdims=0))
    graph.graph.output[0].CopyFrom(value("sentence_embedding", T.FLOAT, "b", 2))
    model = opened(save(graph, **CONFIG))
    assert model.task == "embeddings"
    (vector,) = vectors(model, "很好")
    assert vector[0] == max(ids(model, "很好"))


def test_the_shortest_limit_holds(save: Save) -> None:
    folder = save(states(), **CONFIG, sentence_bert_config={"max_seq_length": 6})
    with pytest.raises(ValidationFailed, match="7 tokens; the model takes 6"):
        opened(folder).check({"text": "好好好好好"})
    save(states(), llmesh={"limits": {"max_tokens": 5}})
    assert len(ids(opened(folder), "好好好")) == 5
    with pytest.raises(ValidationFailed, match="6 tokens; the model takes 5"):
        opened(folder).check({"text": "好好好好"})


def test_no_tokenizer_and_no_finite_vector(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationFailed, match=r"no tokenizer\.json"):
        opened(save(states(), config=CONFIG["config"]))
    model = opened(save(states(), **CONFIG))
    for odd in (np.full((1, 4, 2), np.nan), np.zeros((1, 3, 2)), np.zeros((1, 2))):
        monkeypatch.setattr("llmesh.runtime.graph.Graph.run", lambda *_, odd=odd: {"last_hidden_state": odd})
        with pytest.raises(ModelFailed):
            vectors(model, "很好")


NER = {**CONFIG, "config": {"id2label": WORDS, "architectures": ["TinyForTokenClassification"]}}


def test_each_token_gets_a_label_and_its_place(save: Save) -> None:
    model = opened(save(states("logits"), **NER))
    assert (model.task, model.labels) == ("token-classification", ("zero", "one"))
    text = "很好 good"
    (alone,) = model._task.answer([model.check({"text": text})], Stop())
    _, together = model._task.answer([model.check({"text": "好" * 9}), model.check({"text": text})], Stop())
    assert alone == together
    tokens: Any = alone["tokens"]
    assert [text[token["start"] : token["end"]] for token in tokens] == [token["text"] for token in tokens]
    assert "".join(token["text"] for token in tokens).replace(" ", "") == "很好good"
    assert {token["label"] for token in tokens} == {"zero"}
    assert all(0.5 <= token["score"] <= 1 for token in tokens)


def test_labels_of_tokens_must_match_the_graph(save: Save) -> None:
    config = {**NER["config"], "id2label": {**WORDS, "2": "two"}}
    with pytest.raises(ValidationFailed, match="names 3 labels; the graph scores 2"):
        opened(save(states("logits"), **{**NER, "config": config}))


@pytest.mark.parametrize(
    ("hint", "task"),
    [("raw-tensors", "raw-tensors"), ("embeddings", "embeddings"), (None, "embeddings")],
)
def test_a_hint_decides(save: Save, hint: str | None, task: str) -> None:
    assert opened(save(states(), **CONFIG, llmesh={"task": hint} if hint else {})).task == task


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        ("poetry", "llmesh.json: task 'poetry' is none of"),
        (["embeddings"], "is none of"),
        ("text-classification", "id2label"),
        ("token-classification", "id2label"),
    ],
)
def test_a_hint_that_does_not_fit(save: Save, hint: Any, says: str) -> None:
    with pytest.raises(ValidationFailed, match=says):
        opened(save(states(), **CONFIG, llmesh={"task": hint}))


def test_a_hint_of_embeddings_needs_states(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="none of the outputs of an embedding model"):
        opened(save(states("odd"), **CONFIG, llmesh={"task": "embeddings"}))
