from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.ids import ModelId, model_id, peer_id, request_id
from llmesh.core.reference import ModelRef, model_name, model_version
from llmesh.errors import ValidationFailed

ID = "ab" * 32


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("sentiment-analyzer", ModelRef("sentiment-analyzer")),
        ("sentiment-analyzer-v2", ModelRef("sentiment-analyzer-v2")),
        ("org/模型 2:1.0.0", ModelRef("org/模型 2", "1.0.0")),
        (f"m@{ID}", ModelRef("m", id=ModelId(ID))),
        (f"m:2@{ID}", ModelRef("m", "2", ModelId(ID))),
        (ID, ModelRef("", id=ModelId(ID))),
    ],
)
def test_the_forms(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(
    "text", ["", " ", "-", "a\n", "a\0", "a:", "a@", "a@xyz", "a:b c", ":1", "@" + ID, "a" * 129, "\ud800"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValidationFailed):
        ModelRef.parse(text)


@given(st.text(max_size=200))
def test_parse_gives_a_reference_that_reads_back_or_refuses(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except ValidationFailed:
        return
    assert ModelRef.parse(str(ref)) == ref == ModelRef.parse(text)


@pytest.mark.parametrize("check", [model_id, peer_id, request_id, model_name, model_version])
def test_ids_refuse_nonsense(check: object) -> None:
    with pytest.raises(ValidationFailed):
        check("\n")  # type: ignore[operator]


@pytest.mark.parametrize("thing", [None, 5, 1.0, b"name", ["name"]])
@pytest.mark.parametrize("check", [ModelRef.parse, model_name, model_version])
def test_what_is_no_text_is_refused_clearly(check: object, thing: object) -> None:
    with pytest.raises(ValidationFailed):
        check(thing)  # type: ignore[operator]


def test_ids_accept_theirs() -> None:
    assert model_id(ID) == ID
    assert request_id("0" * 32) == "0" * 32
