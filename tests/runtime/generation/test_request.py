"""Requests for text: what is read, and what is refused by the name of its field."""

from __future__ import annotations

from typing import Any

import pytest

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.request import GenerationRequest, Message


def test_everything_that_may_be_said() -> None:
    found = GenerationRequest.parse(
        {
            "messages": [{"role": "system", "content": "短"}, {"role": "user", "content": "hi"}],
            "max_tokens": 3, "temperature": 0, "top_p": 1, "top_k": 0, "repetition_penalty": 1.5,
            "stop": ["a", "b"], "seed": 2**64 - 1,
        }
    )  # fmt: skip
    assert found == GenerationRequest(
        None, (Message("system", "短"), Message("user", "hi")), 3, 0.0, 1.0, 0, 1.5, ("a", "b"), 2**64 - 1
    )


def test_text_and_prompt_are_the_same() -> None:
    assert GenerationRequest.parse({"text": "x"}) == GenerationRequest.parse({"prompt": "x", "stop": None})
    assert GenerationRequest.parse({"text": "x", "stop": "y"}).stop == ("y",)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "none of them"),
        ({"text": "x", "prompt": "y"}, "text and prompt"),
        ({"text": "x", "max_new_tokens": 4}, "'max_new_tokens'"),
        ({"text": ""}, "text is empty"),
        ({"text": 4}, "text must be a text"),
        ({"prompt": "\ud800"}, "prompt holds half"),
        ({"text": "x" * (4 << 20) + "y"}, "text has 4194305 characters"),
        ({"text": "x", "max_tokens": 0}, "max_tokens"),
        ({"text": "x", "max_tokens": 1.0}, "max_tokens"),
        ({"text": "x", "max_tokens": True}, "max_tokens"),
        ({"text": "x", "temperature": -0.1}, "temperature"),
        ({"text": "x", "temperature": float("nan")}, "temperature"),
        ({"text": "x", "temperature": float("inf")}, "temperature"),
        ({"text": "x", "temperature": "1"}, "temperature"),
        ({"text": "x", "temperature": False}, "temperature"),
        ({"text": "x", "top_p": 0}, "top_p must be a number from above 0 to 1"),
        ({"text": "x", "top_p": 1.01}, "top_p"),
        ({"text": "x", "top_k": -1}, "top_k"),
        ({"text": "x", "repetition_penalty": 0}, "repetition_penalty"),
        ({"text": "x", "seed": -1}, "seed"),
        ({"text": "x", "seed": 2**64}, "seed"),
        ({"text": "x", "stop": ""}, "stop"),
        ({"text": "x", "stop": ["a", 1]}, "stop"),
        ({"text": "x", "stop": ["a"] * 17}, "stop has 17"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "root", "content": "x"}]},
            "messages[1].role",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}] * 1025}, "messages has 1025"),
        ({"messages": [{"role": "user", "content": "x" * (3 << 20)}] * 2}, "messages hold more"),
    ],
)
def test_the_field_at_fault_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        GenerationRequest.parse(values)
    assert named in caught.value.message
