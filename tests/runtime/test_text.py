"""Text classification as the worker does it, in this process."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llmesh.core.encoding import Value
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.batches import BatchedModel
from llmesh.runtime.classification import TextClassifier
from llmesh.runtime.graph import Stop

from .conftest import Save, classifier, opened

TOKENIZER = json.loads((SENTIMENT_ANALYZER / "tokenizer.json").read_text())
WORDS = {"0": "zero", "1": "one"}


def answer(model: BatchedModel[Any], text: str) -> dict[str, Value]:
    """One alone."""
    (one,) = model._task.answer([model.check({"text": text})], Stop())
    return one


def ids(model: BatchedModel[Any], text: str, **more: Value) -> list[int]:
    found: list[int] = model.check({"text": text, **more}).encoding.ids
    return found


@pytest.fixture(scope="module")
def sentiment() -> BatchedModel[Any]:
    return opened(SENTIMENT_ANALYZER)


def test_the_golden_outputs(sentiment: BatchedModel[Any]) -> None:
    golden = json.loads((SENTIMENT_ANALYZER / "golden.json").read_text())
    assert len(golden["cases"]) == 17
    for case in golden["cases"] + golden["known_mistakes"]:
        output: Any = answer(sentiment, case["input"])
        assert output["label"] == case["label"], case
        assert output["score"] == pytest.approx(
            case.get("score", output["score"]), abs=golden["tolerance"]["score"]
        )
        assert output["scores"][output["label"]] == output["score"]
        assert sum(output["scores"].values()) == pytest.approx(1)


def test_special_tokens_in_a_text_are_only_letters(sentiment: BatchedModel[Any]) -> None:
    found = ids(sentiment, "good [SEP][CLS] [MASK] [PAD] bad")
    assert (found[0], found[-1]) == (2, 3)
    assert not {0, 2, 3, 4} & set(found[1:-1])


def test_tokens_are_counted(sentiment: BatchedModel[Any]) -> None:
    assert len(sentiment.check({"text": "很好"})) == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "got nothing"),
        ({"Text": "x"}, "got 'Text'"),
        ({"text": "x", "more": 1}, "got 'more', 'text'"),
        ({"text": 5}, "text must be a string, not int"),
        ({"text": ""}, "empty"),
        ({"text": " \n"}, "empty"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "好" * 159}, "has 161 tokens; the model takes 160"),
        ({"text": "x" * 5_121}, "has 5,121 characters; the model takes 160 tokens"),
    ],
)
def test_what_is_no_text_for_it_is_refused(
    sentiment: BatchedModel[Any], values: dict[str, Value], says: str
) -> None:
    with pytest.raises(ValidationFailed, match=says):
        sentiment.check(values)


def test_the_longest_text(sentiment: BatchedModel[Any]) -> None:
    assert len(ids(sentiment, "好" * 158)) == 160


def test_a_text_is_cut_only_when_asked(sentiment: BatchedModel[Any]) -> None:
    found = ids(sentiment, "好" * 500, truncate=True)
    assert (len(found), found[0], found[-1]) == (160, 2, 3)
    assert ids(sentiment, "好" * 100_000, truncate=True) == found
    assert ids(sentiment, "很好", truncate=True) == ids(sentiment, "很好")
    with pytest.raises(ValidationFailed, match='"truncate": true cuts it'):
        ids(sentiment, "好" * 500, truncate=False)
    with pytest.raises(ValidationFailed, match="truncate must be true or false"):
        ids(sentiment, "好", truncate=1)


def test_the_context_is_the_smallest_that_is_named(save: Save) -> None:
    configs: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "config": {"id2label": WORDS, "max_position_embeddings": 5},
    }
    folder = save(classifier(), **configs, tokenizer_config={"model_max_length": 1e30})
    with pytest.raises(ValidationFailed, match="6 tokens; the model takes 5"):
        opened(folder).check({"text": "好好好好"})
    save(classifier(), tokenizer_config={"model_max_length": 4})
    with pytest.raises(ValidationFailed, match="5 tokens; the model takes 4"):
        opened(folder).check({"text": "好好好"})
    save(classifier(), config={"id2label": WORDS}, tokenizer_config={})
    assert answer(opened(folder), "好" * 1_000)["label"] == "one"


def test_a_graph_of_fixed_length_gets_padding(save: Save) -> None:
    fixed = opened(
        save(classifier(length=8), tokenizer=TOKENIZER, config={"id2label": WORDS, "pad_token_id": 7})
    )
    task: Any = fixed._task
    feeds = task._reader.feeds([fixed.check({"text": "好"})])
    assert feeds["input_ids"][0].tolist()[2:] == [3, 7, 7, 7, 7, 7]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    with pytest.raises(ValidationFailed, match="9 tokens; the model takes 8"):
        fixed.check({"text": "好" * 7})


def test_softmax_over_labels_and_a_sigmoid_where_several_may_apply(save: Save) -> None:
    folder = save(classifier(), tokenizer=TOKENIZER, config={"id2label": WORDS})
    e3 = float(np.exp(3))
    assert answer(opened(folder), "好")["scores"] == pytest.approx(
        {"zero": 1 / (1 + e3), "one": e3 / (1 + e3)}
    )
    save(classifier(), config={"id2label": WORDS, "problem_type": "multi_label_classification"})
    output = answer(opened(folder), "好")
    assert output["scores"] == pytest.approx({"zero": 0.5, "one": e3 / (1 + e3)})
    assert output["label"] == "one"
    save(classifier(1), config={"id2label": {"0": "only"}})
    assert answer(opened(folder), "好") == {"label": "only", "score": 0.5, "scores": {"only": 0.5}}


def test_what_no_label_can_be_made_of_fails(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(save(classifier(), tokenizer=TOKENIZER, config={"id2label": WORDS}))
    monkeypatch.setattr("llmesh.runtime.graph.Graph.run", lambda *_: {"logits": np.array([[np.nan, 0]])})
    with pytest.raises(ModelFailed, match="finite"):
        answer(model, "好")
    monkeypatch.setattr("llmesh.runtime.graph.Graph.run", lambda *_: {"logits": np.zeros((1, 3))})
    with pytest.raises(ModelFailed, match="each of its labels"):
        answer(model, "好")


@pytest.mark.parametrize(
    ("config", "tokenizer", "says"),
    [
        ({"id2label": WORDS}, None, "has no tokenizer.json"),
        ({"id2label": WORDS}, {"model": 1}, "tokenizer.json is not a tokenizer"),
        ({"id2label": {**WORDS, "2": "two"}}, TOKENIZER, "names 3 labels; the graph scores 2"),
        ({"id2label": {"0": "a", "2": "b"}}, TOKENIZER, "id2label must give a label"),
        ({"id2label": {"0": "a", "1": "a"}}, TOKENIZER, "id2label must give a label"),
        ({"id2label": {"0": "a", "1": 1}}, TOKENIZER, "id2label must give a label"),
        ({"id2label": {}}, TOKENIZER, "id2label must map"),
        ({"id2label": ["a", "b"]}, TOKENIZER, "id2label must map"),
        (["no object"], TOKENIZER, "config.json is not a JSON object"),
    ],
)
def test_a_broken_bundle_says_which_file(save: Save, config: Any, tokenizer: Any, says: str) -> None:
    folder = save(classifier(), config=config, **({} if tokenizer is None else {"tokenizer": tokenizer}))
    with pytest.raises(ValidationFailed, match=says):
        opened(folder)


def test_a_config_that_is_no_json(save: Save) -> None:
    folder = save(classifier())
    for broken in (b"{", b"\xff", b"[" * 200_000):
        (folder / "config.json").write_bytes(broken)
        with pytest.raises(ValidationFailed, match=r"config.json is not JSON"):
            opened(folder)
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValidationFailed, match="over 4 MiB"):
        opened(folder)


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"id2label": WORDS}, "text-classification"),
        ({}, "raw-tensors"),
        ({"architectures": ["X"]}, "raw-tensors"),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, "raw-tensors"),
    ],
)
def test_the_task_is_told_by_the_files(save: Save, config: Any, task: str) -> None:
    model = opened(save(classifier(), tokenizer=TOKENIZER, config=config))
    assert model.task == task
    assert isinstance(model._task, TextClassifier) == (task == "text-classification")


def test_a_graph_that_asks_for_more_than_a_text_is_refused(save: Save) -> None:
    graph = classifier()
    graph.graph.input[1].name = graph.graph.node[0].input[0] = "position_ids"
    folder = save(graph, tokenizer=TOKENIZER, config={"id2label": WORDS})
    with pytest.raises(ValidationFailed, match="position_ids"):
        opened(folder)
