"""Codec of /llmesh/directory/1.0.0: core's queries and answers to protobuf bytes and back.

Decoding checks every bound that protobuf lacks; whatever is wrong is one ValidationFailed.  Records
stay as they came: whether they are genuine is for `core.announcement` to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from llmesh.core.amount import Amount
from llmesh.core.announcement import MAX_PAYLOAD, SIGNATURE_BYTES
from llmesh.core.directory import FINGERPRINT_BYTES, Cursor
from llmesh.core.ids import ModelId, peer_id
from llmesh.core.query import Answer, Get, Hint, News, Parting, Query, Record, Search, Sync
from llmesh.errors import ValidationFailed
from llmesh.wire import directory_pb2 as pb

__all__ = ["MAX_MESSAGE", "decode_answer", "decode_query", "encode_answer", "encode_query"]

MAX_MESSAGE = 256 << 10
"""Bytes of one query or answer."""
MAX_HINTS = 64
_MAX_NAME = 128

_M = TypeVar("_M", bound=Message)


def encode_query(query: Query) -> bytes:
    """The opener's message."""
    return _query_to_wire(query).SerializeToString()


def decode_query(data: bytes) -> Query:
    """What a peer asks.  Raises ValidationFailed."""
    message = _parse(pb.Query, data)
    match message.WhichOneof("kind"):
        case "sync":
            return Sync(_cursor(message.sync), _marks(message.sync.known))
        case "search":
            return _search(message.search)
        case "get":
            return Get(_hints(message.get.wanted))
        case "news":
            return News(_records(message.news.records), _hints(message.news.hints))
        case "parting":
            return Parting()
        case _:
            raise ValidationFailed("A query is of no known kind.")


def encode_answer(answer: Answer) -> bytes:
    """One message of the handler."""
    message = pb.Answer(records=_records_to_wire(answer.records), wanted=b"".join(answer.wanted))
    if answer.cursor is not None:
        message.cursor.CopyFrom(_cursor_to_wire(answer.cursor))
    return message.SerializeToString()


def decode_answer(data: bytes) -> Answer:
    """What a peer answers.  Raises ValidationFailed."""
    message = _parse(pb.Answer, data)
    return Answer(_records(message.records), _cursor(message), _marks(message.wanted))


def _query_to_wire(query: Query) -> pb.Query:
    match query:
        case Sync(cursor, known):
            sync = pb.Sync(known=b"".join(known))
            if cursor is not None:
                sync.cursor.CopyFrom(_cursor_to_wire(cursor))
            return pb.Query(sync=sync)
        case Search():
            return pb.Query(search=_search_to_wire(query))
        case Get(wanted):
            return pb.Query(get=pb.Get(wanted=_hints_to_wire(wanted)))
        case News(records, hints):
            return pb.Query(news=pb.News(records=_records_to_wire(records), hints=_hints_to_wire(hints)))
        case Parting():
            return pb.Query(parting=pb.Parting())


def _search_to_wire(search: Search) -> pb.Search:
    return pb.Search(
        name=search.name,
        limit=search.limit,
        max_fee=None if search.max_fee is None else search.max_fee.micro.to_bytes(16, "big").lstrip(b"\0"),
        model_id=None if search.model_id is None else bytes.fromhex(search.model_id),
    )


def _search(message: pb.Search) -> Search:
    if len(message.name) > _MAX_NAME or len(message.max_fee) > 16:
        raise ValidationFailed("A search names at most 128 characters and a fee of 16 bytes.")
    if message.HasField("model_id") and len(message.model_id) != 32:
        raise ValidationFailed("A model id has 32 bytes.")
    return Search(
        name=message.name,
        model_id=ModelId(message.model_id.hex()) if message.HasField("model_id") else None,
        max_fee=Amount(int.from_bytes(message.max_fee, "big")) if message.HasField("max_fee") else None,
        limit=message.limit,
    )


def _cursor_to_wire(cursor: Cursor) -> pb.Cursor:
    return pb.Cursor(start=cursor.start, position=cursor.position)


def _cursor(message: pb.Sync | pb.Answer) -> Cursor | None:
    if not message.HasField("cursor"):
        return None
    return Cursor(message.cursor.start, message.cursor.position)


def _records_to_wire(records: Iterable[Record]) -> list[pb.Record]:
    return [pb.Record(payload=record.payload, signature=record.signature) for record in records]


def _records(messages: Iterable[pb.Record]) -> tuple[Record, ...]:
    records = tuple(Record(message.payload, message.signature) for message in messages)
    for record in records:
        if len(record.payload) > MAX_PAYLOAD or len(record.signature) != SIGNATURE_BYTES:
            raise ValidationFailed(f"A record has at most {MAX_PAYLOAD} bytes and a signature of 64.")
    return records


def _hints_to_wire(hints: Iterable[Hint]) -> list[pb.Hint]:
    return [pb.Hint(peer_id=hint.peer_id, sequence=hint.sequence) for hint in hints]


def _hints(messages: Iterable[pb.Hint]) -> tuple[Hint, ...]:
    hints = tuple(Hint(peer_id(message.peer_id), message.sequence) for message in messages)
    if len(hints) > MAX_HINTS:
        raise ValidationFailed(f"{len(hints)} hints are more than the {MAX_HINTS} of one message.")
    return hints


def _marks(joined: bytes) -> tuple[bytes, ...]:
    if len(joined) % FINGERPRINT_BYTES:
        raise ValidationFailed("Fingerprints have eight bytes each.")
    return tuple(
        joined[start : start + FINGERPRINT_BYTES] for start in range(0, len(joined), FINGERPRINT_BYTES)
    )


def _parse(kind: type[_M], data: bytes) -> _M:
    if len(data) > MAX_MESSAGE:
        raise ValidationFailed(f"A message of {len(data)} bytes is over the {MAX_MESSAGE} of the protocol.")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValidationFailed(f"{len(data)} bytes are not a {kind.__name__} of the directory.") from None
