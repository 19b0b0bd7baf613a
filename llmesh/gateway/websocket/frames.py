"""The frames of /ws: one JSON object each, told apart by its `type`.

A client may send text or binary frames; the node sends text.  What a client names wrongly is refused
in an `error` frame, and the socket stays open.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from llmesh.errors import MeshError
from llmesh.gateway.inference_schema import AskedBody, ResultBody
from llmesh.gateway.schema import decode
from llmesh.mesh.events import EventName

__all__ = [
    "CLIENT_FRAMES",
    "NODE_FRAMES",
    "Auth",
    "Authenticated",
    "Cancel",
    "Cancelled",
    "ClientFrame",
    "ErrorFrame",
    "EventFrame",
    "InferenceStream",
    "NodeFrame",
    "Ping",
    "Pong",
    "StreamAccepted",
    "StreamChunk",
    "StreamCompleted",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
    "decode_frame",
    "id_in",
    "to_text",
]

MAX_ID = 64
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, description="The client's name for a stream.")]
_Events = Annotated[tuple[EventName, ...], Meta(min_length=1, max_length=16)]


class Auth(Struct, tag_field="type", tag="auth", forbid_unknown_fields=True):
    """Show a key, where the handshake's Authorization header did not."""

    key: Annotated[str, Meta(max_length=256)]


class Subscribe(Struct, tag_field="type", tag="subscribe", forbid_unknown_fields=True):
    """Be told of these events too, from now on."""

    events: _Events


class Unsubscribe(Struct, tag_field="type", tag="unsubscribe", forbid_unknown_fields=True):
    """Be told of these events no longer; of none, if no names are given."""

    events: _Events = tuple(EventName)


class InferenceStream(AskedBody, tag_field="type", tag="inference_stream", forbid_unknown_fields=True):
    """Run one inference and be told of it piece by piece, or with `stream` false only at its end."""

    id: Annotated[
        _Id | None, Meta(description="Comes back in every answer; the request id where it is left out.")
    ] = None
    stream: bool = True


class Cancel(Struct, tag_field="type", tag="cancel", forbid_unknown_fields=True):
    """Stop a stream and its work."""

    id: _Id


class Ping(Struct, tag_field="type", tag="ping", forbid_unknown_fields=True):
    """Ask for a sign of life."""

    id: Annotated[_Id | UnsetType, Meta(description="Comes back in the pong.")] = UNSET


class Authenticated(Struct, tag_field="type", tag="authenticated"):
    """The key holds; this is who it makes the client."""

    name: str


class Subscribed(Struct, tag_field="type", tag="subscribed"):
    """All events that are told on this socket from now on."""

    events: list[str]


class StreamAccepted(Struct, tag_field="type", tag="accepted"):
    """A provider has taken the stream up."""

    id: str
    request_id: str
    queued: Annotated[int, Meta(description="Requests that were there before it.")]


class StreamChunk(Struct, tag_field="type", tag="chunk"):
    """A piece of the text; `index` counts from 0."""

    id: str
    index: int
    text: str


class StreamCompleted(ResultBody, tag_field="type", tag="completed"):
    """The end of a stream that was answered: the whole output, what it took and cost."""

    id: str = ""


class Cancelled(Struct, tag_field="type", tag="cancelled"):
    """The end of a stream that its client gave up."""

    id: str


class EventFrame(Struct, tag_field="type", tag="event"):
    """Something happened."""

    event: EventName
    data: Annotated[Any, Meta(description="The shape that has the name of the event.")]
    dropped: Annotated[int, Meta(description="Events lost before this one, as the client read too slowly.")]


class Pong(Struct, tag_field="type", tag="pong"):
    """The answer to a ping."""

    id: str | UnsetType = UNSET


class ErrorFrame(Struct, tag_field="type", tag="error"):
    """A frame was refused, or the stream `id` has failed; `code` and `name` are of the table of errors."""

    code: int
    name: str
    message: str
    next_step: str
    id: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    retry_after: Annotated[float, Meta(description="Seconds.")] | UnsetType = UNSET

    @classmethod
    def of(cls, error: MeshError, id: str | None = None) -> ErrorFrame:
        return cls(
            error.code,
            error.name,
            error.message,
            error.next_step,
            id or UNSET,
            error.request_id or UNSET,
            UNSET if error.retry_after is None else error.retry_after,
        )


ClientFrame: TypeAlias = Auth | Subscribe | Unsubscribe | InferenceStream | Cancel | Ping
NodeFrame: TypeAlias = (
    Authenticated
    | Subscribed
    | StreamAccepted
    | StreamChunk
    | StreamCompleted
    | Cancelled
    | EventFrame
    | Pong
    | ErrorFrame
)
CLIENT_FRAMES: tuple[type[Struct], ...] = (Auth, Subscribe, Unsubscribe, InferenceStream, Cancel, Ping)
NODE_FRAMES: tuple[type[Struct], ...] = (
    Authenticated, Subscribed, EventFrame, StreamAccepted, StreamChunk, StreamCompleted, Cancelled,
    ErrorFrame, Pong,
)  # fmt: skip

_decode: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_encode = msgspec.json.Encoder().encode


class _Named(Struct):
    id: _Id | None = None


def decode_frame(data: bytes) -> ClientFrame:
    """Raises ValidationFailed, naming the field, for what is no frame."""
    return decode(data, _decode.decode, "frame")


def id_in(data: bytes) -> str | None:
    """The stream that a frame which is refused speaks of, as far as it can be read."""
    try:
        return msgspec.json.decode(data, type=_Named).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def to_text(frame: NodeFrame) -> str:
    """Raises RecursionError or UnicodeEncodeError for values that no JSON can hold."""
    return _encode(frame).decode()
