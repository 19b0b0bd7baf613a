"""Frames of /llmesh/session/1.0.0 to bytes and back.

Outgoing texts are cut to the sizes the protocol allows; incoming frames are checked against them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from llmesh.core.frames import (
    MAX_PAYLOAD,
    Cancel,
    Credit,
    End,
    Failed,
    Frame,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
)  # fmt: skip
from llmesh.core.framing import HEADER
from llmesh.errors import ValidationFailed
from llmesh.wire import session_pb2 as pb

__all__ = ["MAX_PROTOCOL", "decode", "encode"]

MAX_PROTOCOL = 128
_MAX_TEXT = 2048
_MAX_ADDRESS = 256
_MAX_ADDRESSES = 32

# Read once: looking a kind up in the generated class costs as much as decoding a field.
_HELLO, _PING, _PONG = pb.Frame.HELLO, pb.Frame.PING, pb.Frame.PONG
_OPEN, _MESSAGE, _END = pb.Frame.OPEN, pb.Frame.MESSAGE, pb.Frame.END
_FAILED, _CANCEL, _CREDIT = pb.Frame.FAILED, pb.Frame.CANCEL, pb.Frame.CREDIT
_OF_SESSION = frozenset({_HELLO, _PING, _PONG})


def encode(frame: Frame) -> bytes:
    """The frame with its length before it."""
    if isinstance(frame, Message):
        return _encoded(frame)
    body = _ENCODERS[type(frame)](frame).SerializeToString()
    return len(body).to_bytes(HEADER, "big") + body


def decode(body: bytes) -> Frame | None:
    """The frame, without its length; None for a kind of a newer version.  Raises ValidationFailed."""
    try:
        wire = pb.Frame.FromString(body)
    except DecodeError:
        raise ValidationFailed("A frame is not the protobuf message of the session.") from None
    kind, call = wire.kind, wire.call
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return None
    if (call == 0) is not (kind in _OF_SESSION) and kind != _CREDIT:
        raise ValidationFailed("A frame of a call names no call, or one of the session names one.")
    return decoder(call, wire)


def _from_open(call: int, wire: pb.Frame) -> Open:
    protocol = wire.protocol
    if len(protocol) > MAX_PROTOCOL:
        raise ValidationFailed(f"A protocol's name is over {MAX_PROTOCOL} characters.")
    return Open(call, protocol, wire.timeout_ms, _payload(wire), wire.more)


def _from_failed(call: int, wire: pb.Frame) -> Failed:
    error = wire.error
    retry_after = error.retry_after_ms / 1000 if error.retry_after_ms else None
    return Failed(call, error.code, _cut(error.message, _MAX_TEXT), retry_after)


def _from_hello(_call: int, wire: pb.Frame) -> Hello:
    hello = wire.hello
    return Hello(
        _cut(hello.agent, _MAX_ADDRESS),
        _cut(hello.observed_address, _MAX_ADDRESS),
        tuple(a for a in hello.addresses[:_MAX_ADDRESSES] if len(a) <= _MAX_ADDRESS),
    )


def _payload(wire: pb.Frame) -> bytes:
    payload = wire.payload
    if len(payload) > MAX_PAYLOAD:
        raise ValidationFailed(f"A frame's payload is over {MAX_PAYLOAD} bytes.")
    return payload


def _to_open(frame: Open) -> pb.Frame:
    wire = pb.Frame(kind=_OPEN, call=frame.call, protocol=frame.protocol, payload=frame.payload)
    if frame.timeout_ms:
        wire.timeout_ms = frame.timeout_ms
    if frame.more:
        wire.more = True
    return wire


def _encoded(frame: Message) -> bytes:
    """What protobuf makes of it, byte for byte, but the payload is copied once instead of three times."""
    size = len(frame.payload)
    head = pb.Frame(kind=_MESSAGE, call=frame.call).SerializeToString()
    head += b"\x2a" + _varint(size) if size else b""
    tail = b"\x30\x01" if frame.more else b""
    length = len(head) + size + len(tail)
    return b"".join((length.to_bytes(HEADER, "big"), head, frame.payload, tail))


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _error(failed: Failed) -> pb.Error:
    return pb.Error(
        code=failed.code,
        message=_cut(failed.message, _MAX_TEXT),
        retry_after_ms=min(round((failed.retry_after or 0) * 1000), (1 << 32) - 1),
    )


def _hello(hello: Hello) -> pb.Hello:
    return pb.Hello(
        agent=_cut(hello.agent, _MAX_ADDRESS),
        observed_address=_cut(hello.observed_address, _MAX_ADDRESS),
        addresses=[a for a in hello.addresses[:_MAX_ADDRESSES] if len(a) <= _MAX_ADDRESS],
    )


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8, whole characters only."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


_DECODERS: dict[int, Callable[[int, pb.Frame], Frame]] = {
    _HELLO: _from_hello,
    _PING: lambda _call, _wire: Ping(),
    _PONG: lambda _call, _wire: Pong(),
    _OPEN: _from_open,
    _MESSAGE: lambda call, wire: Message(call, _payload(wire), wire.more),
    _END: lambda call, _wire: End(call),
    _FAILED: _from_failed,
    _CANCEL: lambda call, _wire: Cancel(call),
    _CREDIT: lambda call, wire: Credit(call, wire.credit),
}

_ENCODERS: dict[type[Frame], Callable[[Any], pb.Frame]] = {
    Hello: lambda frame: pb.Frame(kind=_HELLO, hello=_hello(frame)),
    Ping: lambda _frame: pb.Frame(kind=_PING),
    Pong: lambda _frame: pb.Frame(kind=_PONG),
    Open: _to_open,
    End: lambda frame: pb.Frame(kind=_END, call=frame.call),
    Failed: lambda frame: pb.Frame(kind=_FAILED, call=frame.call, error=_error(frame)),
    Cancel: lambda frame: pb.Frame(kind=_CANCEL, call=frame.call),
    Credit: lambda frame: pb.Frame(kind=_CREDIT, call=frame.call, credit=frame.amount),
}
