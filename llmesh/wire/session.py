"""Frames of /llmesh/session/1.0.0 to bytes and back.

Outgoing texts are cut to the sizes the protocol allows; incoming frames are checked against them.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from llmesh.core.credit import CALL_WINDOW, MAX_CALL_WINDOW
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
from llmesh.core.framing import with_length
from llmesh.errors import ValidationFailed
from llmesh.wire import session_pb2 as pb

__all__ = ["MAX_PROTOCOL", "decode", "encode"]

MAX_PROTOCOL = 128
_MAX_TEXT = 2048
_MAX_ADDRESS = 256
_MAX_ADDRESSES = 32
_OF_SESSION = {pb.Frame.HELLO, pb.Frame.PING, pb.Frame.PONG}


def encode(frame: Frame) -> bytes:
    """The frame with its length before it."""
    return with_length(_to_wire(frame).SerializeToString())


def decode(body: bytes) -> Frame | None:
    """The frame, without its length; None for a kind of a newer version.  Raises ValidationFailed."""
    try:
        wire = pb.Frame.FromString(body)
    except DecodeError:
        raise ValidationFailed("A frame is not the protobuf message of the session.") from None
    kind = wire.kind
    if kind == pb.Frame.MESSAGE:
        _check(wire)
        return Message(wire.call, wire.payload, wire.more)
    if kind == pb.Frame.OPEN:
        _check(wire)
        if wire.credit > MAX_CALL_WINDOW - CALL_WINDOW:
            raise ValidationFailed(f"A call's window is over {MAX_CALL_WINDOW} bytes.")
        return Open(wire.call, wire.protocol, wire.timeout_ms, wire.payload, wire.more, wire.credit)
    return _of_control(wire)


def _to_wire(frame: Frame) -> pb.Frame:
    match frame:
        case Message(call, payload, more):
            return pb.Frame(kind=pb.Frame.MESSAGE, call=call, payload=payload, more=more)
        case Open(call, protocol, timeout_ms, payload, more, credit):
            return pb.Frame(
                kind=pb.Frame.OPEN, call=call, protocol=protocol,
                timeout_ms=timeout_ms, payload=payload, more=more, credit=credit,
            )  # fmt: skip
        case End(call):
            return pb.Frame(kind=pb.Frame.END, call=call)
        case Credit(call, amount):
            return pb.Frame(kind=pb.Frame.CREDIT, call=call, credit=amount)
        case Cancel(call):
            return pb.Frame(kind=pb.Frame.CANCEL, call=call)
        case Failed():
            return pb.Frame(kind=pb.Frame.FAILED, call=frame.call, error=_error(frame))
        case Ping():
            return pb.Frame(kind=pb.Frame.PING)
        case Pong():
            return pb.Frame(kind=pb.Frame.PONG)
        case Hello():
            return pb.Frame(kind=pb.Frame.HELLO, hello=_hello(frame))


def _of_control(wire: pb.Frame) -> Frame | None:
    kind = wire.kind
    if kind == pb.Frame.CREDIT:
        return Credit(wire.call, wire.credit)
    if kind in _OF_SESSION:
        return _of_session(wire)
    if wire.call == 0 and kind in {pb.Frame.END, pb.Frame.CANCEL, pb.Frame.FAILED}:
        raise ValidationFailed("A frame of a call names no call.")
    if kind == pb.Frame.END:
        return End(wire.call)
    if kind == pb.Frame.CANCEL:
        return Cancel(wire.call)
    if kind == pb.Frame.FAILED:
        error = wire.error
        retry_after = error.retry_after_ms / 1000 if error.retry_after_ms else None
        return Failed(wire.call, error.code, _cut(error.message, _MAX_TEXT), retry_after)
    return None


def _of_session(wire: pb.Frame) -> Frame:
    if wire.call != 0:
        raise ValidationFailed("A frame of the session names a call.")
    if wire.kind == pb.Frame.PING:
        return Ping()
    if wire.kind == pb.Frame.PONG:
        return Pong()
    hello = wire.hello
    return Hello(
        _cut(hello.agent, _MAX_ADDRESS),
        _cut(hello.observed_address, _MAX_ADDRESS),
        tuple(a for a in hello.addresses[:_MAX_ADDRESSES] if len(a) <= _MAX_ADDRESS),
    )


def _check(wire: pb.Frame) -> None:
    if wire.call == 0:
        raise ValidationFailed("A frame of a call names no call.")
    if len(wire.payload) > MAX_PAYLOAD:
        raise ValidationFailed(f"A frame's payload is over {MAX_PAYLOAD} bytes.")
    if len(wire.protocol) > MAX_PROTOCOL:
        raise ValidationFailed(f"A protocol's name is over {MAX_PROTOCOL} characters.")


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
