"""One digest for the same values however they are written, and another for any others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.digest import values_digest
from llmesh.core.encoding import Tensor, Value
from llmesh.errors import ValidationFailed

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
values = st.dictionaries(st.sampled_from(["a", "b", "ab", ""]), jsons, max_size=3)


@given(values)
def test_it_is_the_same_after_json_and_in_any_order(value: dict[str, Value]) -> None:
    backwards = dict(reversed(value.items()))
    assert values_digest(json.loads(json.dumps(backwards))) == values_digest(value)


def same(one: object, other: object) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    return one == other and json.dumps(_plain(one), sort_keys=True) == json.dumps(
        _plain(other), sort_keys=True
    )


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 53
    return int(value) if whole else value  # type: ignore[call-overload]


@given(values, values)
def test_other_values_have_another(one: dict[str, Value], other: dict[str, Value]) -> None:
    assert (values_digest(one) == values_digest(other)) == same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": None}),
        ({"a": "1"}, {"a": 1}),
        ({"a": []}, {"a": {}}),
        ({"a": ["b", "c"]}, {"a": ["bc"]}),
        ({"a": [[], []]}, {"a": [[[]]]}),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
        ({}, {"a": None}),
        ({"a": Tensor("int8", (2,), b"ab")}, {"a": Tensor("uint8", (2,), b"ab")}),
        ({"a": Tensor("int8", (2, 1), b"ab")}, {"a": Tensor("int8", (1, 2), b"ab")}),
        ({"a": Tensor("int8", (2,), b"ab")}, {"a": "ab"}),
        ({"a": Tensor("int8", (0,), b"")}, {"a": Tensor("int8", (0, 0), b"")}),
    ],
)
def test_near_misses_differ(one: dict[str, Value], other: dict[str, Value]) -> None:
    assert values_digest(one) != values_digest(other)


def test_whole_numbers_are_one_number() -> None:
    assert values_digest({"a": 1.0, "b": -0.0}) == values_digest({"a": 1, "b": 0})
    assert values_digest({"a": 10**5000}) != values_digest({"a": 10**5000 + 1})


def test_it_stays_what_it_is() -> None:
    """Receipts outlive versions of the program."""
    known = {"text": "你好世界", "x": Tensor("float32", (1,), bytes(4)), "y": [1, 0.5, None, True]}
    assert values_digest(known).hex() == "cb3b9595087309deda2d7bb1af6a2fa8871159e0c80bc154fcb9edd130d9f213"


def test_deep_nesting_is_no_trouble() -> None:
    deep: Value = []
    for _ in range(100_000):
        deep = [deep]
    assert len(values_digest({"a": deep})) == 32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), "\ud800", ["\udfff"]])
def test_what_json_cannot_hold_is_refused(bad: Value) -> None:
    with pytest.raises(ValidationFailed):
        values_digest({"a": bad})
