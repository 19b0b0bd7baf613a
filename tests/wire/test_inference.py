from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, RequestId
from llmesh.core.inference import Attempt, Chunk, Usage
from llmesh.core.payment import Payment
from llmesh.core.voucher import ChannelId, SignedVoucher, Voucher
from llmesh.errors import TooLarge, ValidationFailed
from llmesh.wire import inference_pb2 as pb
from llmesh.wire.inference import (
    MAX_ITEMS,
    MAX_REQUEST,
    decode_event,
    decode_request,
    encode_event,
    encode_request,
)
from tests.core.receipts import costing

text = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=6
)
tensors = st.lists(st.integers(0, 255), max_size=8).map(lambda n: Tensor("uint8", (len(n),), bytes(n)))
values = st.dictionaries(names, json_values | tensors, max_size=4)
amounts = st.integers(0, (1 << 128) - 1).map(Amount)
uint32 = st.integers(0, (1 << 32) - 1)
receipts = st.integers(0, (1 << 128) - 1).map(costing)
hashes = st.binary(min_size=32, max_size=32)
vouchers = st.builds(
    SignedVoucher,
    st.builds(Voucher, hashes.map(ChannelId), amounts),
    st.binary(min_size=65, max_size=65),
)
payments = st.builds(Payment, hashes.map(ChannelId), hashes, st.none() | vouchers)
attempts = st.builds(
    Attempt,
    st.binary(min_size=16, max_size=16).map(lambda b: RequestId(b.hex())),
    st.integers(1, 1000),
    st.binary(min_size=32, max_size=32).map(lambda b: ModelId(b.hex())),
    values,
    amounts,
    st.just(5.0),
    st.none() | payments,
)
events = (
    st.builds(Accepted, uint32, st.integers(0, 1000).map(lambda n: n / 1000))
    | st.builds(Chunk, uint32, text, st.lists(uint32, max_size=5).map(tuple), values)
    | st.builds(Completed, st.builds(Usage, uint32, uint32, st.integers(0, 1 << 40).map(float)), receipts)
)
ATTEMPT = Attempt(RequestId("0" * 32), 1, ModelId("a" * 64), {}, Amount(1), 5.0)


@given(attempts)
def test_attempts_come_back_as_they_left(attempt: Attempt) -> None:
    assert decode_request(encode_request(attempt), 5.0) == attempt


@given(events)
def test_events_come_back_as_they_left(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(
    st.binary(max_size=80) | events.map(encode_event).flatmap(lambda b: st.binary(max_size=9).map(b.__add__))
)
def test_any_bytes_are_a_message_or_one_clear_error(data: bytes) -> None:
    for decode in (decode_event, lambda data: decode_request(data, 1.0)):
        with suppress(ValidationFailed):
            decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": b"short"},
        {"model_id": bytes(31)},
        {"attempt": 0},
        {"quote": bytes(17)},
        {"channel": bytes(31), "offer": bytes(32)},
        {"channel": bytes(32)},
        {"offer": bytes(32)},
        {"voucher": bytes(113)},
        {"channel": bytes(32), "offer": bytes(32), "voucher": bytes(112)},
    ],
)
def test_fields_of_wrong_size_are_refused(change: dict[str, object]) -> None:
    message = pb.Request.FromString(encode_request(ATTEMPT))
    for field, value in change.items():
        setattr(message, field, value)
    with pytest.raises(ValidationFailed):
        decode_request(message.SerializeToString(), 1.0)


def with_json(data: bytes) -> bytes:
    message = pb.Request.FromString(encode_request(ATTEMPT))
    message.input["x"].json = data
    return message.SerializeToString()


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"NaN", b"-Infinity", b"[1e999]", b"\xff", b'"\\ud800"', b'{"\\uDfff": 1}', b"9" * 5000,
     nested(66), nested(200_000)],
    ids=range(11),
)  # fmt: skip
def test_json_that_others_would_choke_on_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationFailed):
        decode_request(with_json(data), 1.0)


def test_json_at_the_bounds_is_taken() -> None:
    assert decode_request(with_json(nested(64)), 1.0).input["x"] == json.loads(nested(64))
    assert decode_request(with_json(b'"\\ud83d\\ude00"'), 1.0).input["x"] == "\U0001f600"


@pytest.mark.parametrize(
    "data", [b"[" + b"[]," * MAX_ITEMS + b"[]]", b"[" + b"{}," * MAX_ITEMS + b"{}]"], ids=["lists", "objects"]
)
def test_json_that_takes_the_whole_node_to_take_apart_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationFailed, match="items"):
        decode_request(with_json(data), 1.0)


def test_a_request_beyond_all_bounds_is_not_even_looked_at() -> None:
    with pytest.raises(TooLarge):
        decode_request(bytes(MAX_REQUEST + 1), 1.0)


def test_endless_token_ids_and_dimensions_are_refused() -> None:
    tokens = pb.Event(chunk=pb.Chunk(token_ids=range(MAX_ITEMS + 1)))
    with pytest.raises(ValidationFailed, match="items"):
        decode_event(tokens.SerializeToString())
    flat = pb.Event(chunk=pb.Chunk())
    flat.chunk.values["x"].tensor.CopyFrom(pb.Tensor(dtype="uint8", shape=[1] * 65, data=b"0"))
    with pytest.raises(ValidationFailed, match="dimensions"):
        decode_event(flat.SerializeToString())


def test_too_many_or_too_long_names_are_refused() -> None:
    message = pb.Request.FromString(encode_request(ATTEMPT))
    for n in range(257):
        message.input[str(n)].text = ""
    with pytest.raises(ValidationFailed, match="257"):
        decode_request(message.SerializeToString(), 1.0)
    event = pb.Event()
    event.chunk.values["x" * 257].text = ""
    with pytest.raises(ValidationFailed, match="256 characters"):
        decode_event(event.SerializeToString())


def test_a_tensor_that_lies_about_its_shape_is_refused() -> None:
    message = pb.Request.FromString(encode_request(ATTEMPT))
    message.input["x"].tensor.CopyFrom(pb.Tensor(dtype="float32", shape=[1 << 62, 4], data=bytes(16)))
    with pytest.raises(ValidationFailed):
        decode_request(message.SerializeToString(), 1.0)


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        ["\udfff"],
        float("nan"),
        [float("inf")],
        {"a": Tensor("uint8", (0,), b"")},
        json.loads(nested(66)),
    ],
    ids=range(6),
)
def test_what_cannot_travel_is_refused_before_it_leaves(value: Value) -> None:
    with pytest.raises(ValidationFailed):
        encode_event(Chunk(0, values={"x": value}))


def test_numbers_out_of_range_are_refused_before_they_leave() -> None:
    with pytest.raises(ValidationFailed):
        encode_event(Chunk(0, token_ids=(-1,)))
    with pytest.raises(ValidationFailed):
        encode_event(Completed(Usage(output_tokens=1 << 40), costing(0)))


def test_a_message_without_a_kind_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="no known kind"):
        decode_event(b"")


def test_a_peer_cannot_report_more_than_a_full_load() -> None:
    event = pb.Event(accepted=pb.Accepted(load_permille=4_000_000_000))
    assert decode_event(event.SerializeToString()) == Accepted(0, 1.0)


def test_unknown_fields_are_carried_past() -> None:
    data = encode_event(Accepted(3)) + b"\xfa\x3e\x03new"
    assert decode_event(data) == Accepted(3)
