"""Codec of /llmesh/inference/1.0.0: core's messages to protobuf bytes and back.

Decoding trusts nothing: every bound that protobuf lacks is checked here, and whatever is wrong is
one ValidationFailed.  It does not judge the order of messages; `core.exchange` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from llmesh.core.amount import Amount
from llmesh.core.encoding import Json, Tensor, Value
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, RequestId
from llmesh.core.inference import Attempt, Chunk, Usage
from llmesh.core.payment import Payment
from llmesh.core.receipt import read_receipt
from llmesh.core.trace import MAX_TRACE, read_trace
from llmesh.core.voucher import ChannelId, read_voucher
from llmesh.errors import TooLarge, ValidationFailed
from llmesh.wire import inference_pb2 as pb

__all__ = ["decode_event", "decode_request", "encode_event", "encode_request"]

MAX_VALUES = 256
"""Named values in one message."""
MAX_NAME = 256
"""Characters of a value's name."""
MAX_DEPTH = 64
"""Lists and objects within each other in one JSON value."""

MAX_ITEMS = 2_000_000
"""Numbers, texts, lists and objects in the JSON values of one message, and its token ids: taking more apart
would hold up the whole node for seconds.  What is larger travels as a tensor."""
MAX_REQUEST = 32 << 20
"""Bytes of a request."""
MAX_DIMENSIONS = 64

_M = TypeVar("_M", bound=Message)


def encode_request(attempt: Attempt) -> bytes:
    """The opener's message.  Raises ValidationFailed for an input that cannot travel.

    The timeout is not in it: it travels with the call.
    """
    message = pb.Request(
        request_id=bytes.fromhex(attempt.request_id),
        attempt=attempt.number,
        model_id=bytes.fromhex(attempt.model_id),
        quote=_amount_bytes(attempt.quote),
        trace=str(attempt.trace or ""),
    )
    if attempt.payment is not None:
        _encode_payment(attempt.payment, message)
    with _travelling():
        _encode_values(attempt.input, message.input)
    return message.SerializeToString()


def decode_request(data: bytes, timeout: float) -> Attempt:
    """The attempt in an opener's message, with the timeout of its call.

    Raises TooLarge over `MAX_REQUEST`, ValidationFailed for all else that is wrong.
    """
    if len(data) > MAX_REQUEST:
        raise TooLarge(f"A request of {len(data)} bytes is over the limit of {MAX_REQUEST}.")
    message = _parse(pb.Request, data)
    if len(message.request_id) != 16 or len(message.model_id) != 32 or message.attempt < 1:
        raise ValidationFailed("A request needs 16 bytes of request id, 32 of model id, an attempt from 1.")
    return Attempt(
        request_id=RequestId(message.request_id.hex()),
        number=message.attempt,
        model_id=ModelId(message.model_id.hex()),
        input=_decode_values(message.input),
        quote=_amount(message.quote),
        timeout=timeout,
        payment=_decode_payment(message),
        trace=read_trace(message.trace[:MAX_TRACE]),
    )


def encode_event(event: Event) -> bytes:
    """One message of the handler.  Raises ValidationFailed for values that cannot travel."""
    message = pb.Event()
    with _travelling():
        if isinstance(event, Accepted):
            load = round(event.load * 1000)
            message.accepted.CopyFrom(pb.Accepted(queued=event.queued, load_permille=load))
        elif isinstance(event, Chunk):
            message.chunk.CopyFrom(pb.Chunk(index=event.index, text=event.text, token_ids=event.token_ids))
            _encode_values(event.values, message.chunk.values)
        else:
            message.completed.CopyFrom(_encode_completed(event))
    return message.SerializeToString()


def decode_event(data: bytes) -> Event:
    """What a handler said.  Raises ValidationFailed."""
    message = _parse(pb.Event, data)
    kind = message.WhichOneof("kind")
    if kind == "accepted":
        return Accepted(message.accepted.queued, min(message.accepted.load_permille, 1000) / 1000)
    if kind == "chunk":
        chunk = message.chunk
        _check_items(len(chunk.token_ids))
        return Chunk(chunk.index, chunk.text, tuple(chunk.token_ids), _decode_values(chunk.values))
    if kind == "completed":
        done = message.completed
        usage = Usage(done.input_tokens, done.output_tokens, done.compute_us / 1000)
        return Completed(usage, read_receipt(done.receipt))
    raise ValidationFailed("A message of the inference protocol is of no known kind.")


def _encode_completed(event: Completed) -> pb.Completed:
    return pb.Completed(
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        compute_us=round(event.usage.compute_ms * 1000),
        receipt=event.receipt.packed,
    )


def _encode_payment(payment: Payment, message: pb.Request) -> None:
    message.channel, message.offer = payment.channel, payment.offer
    message.voucher = payment.voucher.packed if payment.voucher else b""


def _decode_payment(message: pb.Request) -> Payment | None:
    if not (message.channel or message.voucher or message.offer):
        return None
    if len(message.channel) != 32 or len(message.offer) != 32:
        raise ValidationFailed("A payment names its channel and its offer by 32 bytes each.")
    voucher = read_voucher(message.voucher) if message.voucher else None
    return Payment(ChannelId(message.channel), message.offer, voucher)


@contextmanager
def _travelling() -> Iterator[None]:
    # protobuf and json report what they cannot write as one or the other of these.
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:
        raise ValidationFailed(f"A value cannot travel: {error}.") from None


def _parse(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValidationFailed(
            f"{len(data)} bytes are not a {kind.__name__} of the inference protocol."
        ) from None


def _amount_bytes(amount: Amount) -> bytes:
    return amount.micro.to_bytes(16, "big").lstrip(b"\0")


def _amount(data: bytes) -> Amount:
    if len(data) > 16:
        raise ValidationFailed("An amount takes at most 16 bytes.")
    return Amount(int.from_bytes(data, "big"))


def _encode_values(values: Mapping[str, Value], message: Mapping[str, pb.Value]) -> None:
    _check_count(len(values))
    for name, value in values.items():
        _check_name(name)
        _encode_value(value, message[name])


def _decode_values(message: Mapping[str, pb.Value]) -> dict[str, Value]:
    _check_count(len(message))
    _check_items(sum(_items(value.json) for value in message.values()))
    values = {}
    for name, value in message.items():
        _check_name(name)
        values[name] = _decode_value(value)
    return values


def _check_count(count: int) -> None:
    if count > MAX_VALUES:
        raise ValidationFailed(f"{count} named values are more than the {MAX_VALUES} allowed.")


def _items(data: bytes) -> int:
    """At least as many as the JSON has."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise ValidationFailed(f"{count} items in one message are more than the {MAX_ITEMS} allowed.")


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME:
        raise ValidationFailed(f"A value's name has 1 to {MAX_NAME} characters, not {len(name)}.")


def _encode_value(value: Value, message: pb.Value) -> None:
    if isinstance(value, str):
        message.text = value
    elif isinstance(value, Tensor):
        message.tensor.CopyFrom(pb.Tensor(dtype=value.dtype, shape=value.shape, data=value.data))
    else:
        _check_depth(value)
        message.json = _write_json(value).encode()


def _decode_value(message: pb.Value) -> Value:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return message.text
    if kind == "tensor":
        tensor = message.tensor
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise ValidationFailed(f"A tensor has at most {MAX_DIMENSIONS} dimensions.")
        return Tensor(tensor.dtype, tuple(tensor.shape), tensor.data)
    if kind == "json":
        return _decode_json(message.json)
    raise ValidationFailed("A named value is of no known kind.")


def _decode_json(data: bytes) -> Json:
    try:
        value: Json = _read_json(data.decode())
        if b"\\u" in data:  # the one way for half a surrogate pair to come in
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValidationFailed("A named value is not JSON of finite numbers and whole characters.") from None
    _check_depth(value)
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _not_finite(text: str) -> float:
    raise ValueError(text)


# Made once: `json.dumps` and `json.loads` make theirs anew for each value, at half of the cost.
_write_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_read_json = json.JSONDecoder(parse_constant=_not_finite, parse_float=_finite).decode


def _check_depth(value: Json) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValidationFailed(f"A named value nests more than {MAX_DEPTH} deep.")


def _children(value: Json) -> list[Json]:
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else []
