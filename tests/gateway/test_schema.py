"""JSON shapes: what goes in comes out, whatever the values."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Result
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.gateway.inference import render_result
from llmesh.gateway.inference_schema import decode_inference
from llmesh.gateway.schema import decode, mesh


def rendered(output: dict[str, Value]) -> dict:
    result = Result(
        RequestId("0" * 32), "m", ModelId("0" * 64), output, Amount(1), PeerId("12D3KooW" + "A" * 44), 1.0
    )
    return json.loads(render_result(result))["output"]


@pytest.mark.parametrize(
    ("tensor", "nested"),
    [
        (Tensor("float32", (2, 3), struct.pack("<6f", *range(6))), [[0, 1, 2], [3, 4, 5]]),
        (Tensor("int64", (2, 1, 2), struct.pack("<4q", 1, -2, 3, 1 << 62)), [[[1, -2]], [[3, 1 << 62]]]),
        (Tensor("float64", (), struct.pack("<d", 0.5)), 0.5),
        (Tensor("bool", (3,), b"\0\1\1"), [False, True, True]),
        (Tensor("float16", (2,), struct.pack("<2e", 0.5, -2)), [0.5, -2]),
        (Tensor("uint64", (1,), struct.pack("<Q", (1 << 64) - 1)), [(1 << 64) - 1]),
        (Tensor("uint8", (0,), b""), []),
        (Tensor("float32", (1_000_000_000, 0), b""), []),
        (Tensor("float32", (3,), struct.pack("<3f", math.nan, math.inf, -math.inf)), [None, None, None]),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_become_nested_lists(tensor: Tensor, nested: object) -> None:
    assert rendered({"t": tensor}) == {"t": nested}


_text = st.text(st.characters(exclude_categories=["Cs"]))
_numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
_values = st.recursive(
    st.none() | st.booleans() | _numbers | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_text.filter(bool), _values, min_size=1, max_size=4))
def test_values_survive_both_ways(values: dict) -> None:
    body = json.dumps({"model": "m", "input": values}).encode()
    assert decode(body, decode_inference).input == values
    assert rendered(values) == values


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_body_or_a_refusal(data: bytes) -> None:
    try:
        decode(data, decode_inference)
    except ValidationFailed as error:
        assert error.http_status in (400, 422)  # noqa: PT017


@given(st.integers(0, (1 << 128) - 1))
def test_amounts_are_written_exactly(micro: int) -> None:
    text = bytes(mesh(Amount(micro))).decode()
    assert Amount.parse(text) == Amount(micro)
    json.loads(text)


@pytest.mark.parametrize("output", [{"x": "\ud800"}, {"\udfff": 1}])
def test_an_answer_that_no_json_can_hold_is_the_providers_fault(output: dict) -> None:
    with pytest.raises(ModelFailed):
        rendered(output)


def test_an_endlessly_nested_answer_is_the_providers_fault() -> None:
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ModelFailed):
        rendered({"x": value})
