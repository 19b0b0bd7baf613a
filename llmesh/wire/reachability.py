"""Messages of /llmesh/reach/1.0.0 to bytes and back; what is too much is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from llmesh.errors import ValidationFailed
from llmesh.wire import reach_pb2 as pb

__all__ = ["decode_ask", "decode_told", "encode_ask", "encode_told"]

_MAX_ADDRESSES = 8
_MAX_ADDRESS = 256


def encode_ask(addresses: Sequence[str]) -> bytes:
    """Where the asker wants to be dialled."""
    return pb.Ask(addresses=_bounded(addresses)).SerializeToString()


def decode_ask(data: bytes) -> tuple[str, ...]:
    """At most 8 addresses, of unchecked text.  Raises ValidationFailed."""
    try:
        return _bounded(pb.Ask.FromString(data).addresses)
    except DecodeError:
        raise ValidationFailed("A request to be dialled back is not its protobuf message.") from None


def encode_told(reached: Sequence[str]) -> bytes:
    """Which of them answered."""
    return pb.Told(reached=_bounded(reached)).SerializeToString()


def decode_told(data: bytes) -> tuple[str, ...]:
    """At most 8 addresses, of unchecked text.  Raises ValidationFailed."""
    try:
        return _bounded(pb.Told.FromString(data).reached)
    except DecodeError:
        raise ValidationFailed("The answer of a dial-back is not its protobuf message.") from None


def _bounded(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in list(addresses)[:_MAX_ADDRESSES] if len(text) <= _MAX_ADDRESS)
