"""multipart/form-data as it comes (RFC 7578), part by part, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData, Preamble

from llmesh.errors import TooLarge
from llmesh.gateway.body import HELD
from llmesh.gateway.schema import Malformed

__all__ = ["Piece", "pieces_of_parts"]

MAX_PARTS = 8
_MAX_BOUNDARY = 70
_BUFFER = 4 * HELD
"""Bytes that may wait for the end of a line, of a part's head or of the boundary."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one part; `first` of a part even where it is empty."""

    name: str
    data: bytes
    first: bool


async def pieces_of_parts(body: AsyncIterator[bytes], boundary: str) -> AsyncGenerator[Piece]:
    """The parts of a body, one after the other.

    Raises Malformed for what is no form, TooLarge for heads or parts beyond all measure, and
    whatever reading the body raises.
    """
    if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
        raise Malformed("The Content-Type names no boundary of 1 to 70 ASCII characters.")
    decoder = MultipartDecoder(boundary.encode(), _BUFFER, max_parts=MAX_PARTS)
    name, first = "", False
    async for data in body:
        for start in range(0, len(data), HELD):
            for event in _events(decoder, data[start : start + HELD]):
                if isinstance(event, Field | File):
                    name, first = event.name or "", True
                elif isinstance(event, Data):
                    yield Piece(name, event.data, first)
                    first = False
    for _ in _events(decoder, None):
        pass  # what is still missing is an error


def _events(decoder: MultipartDecoder, data: bytes | None) -> list[Event]:
    """What these bytes bring; None is the end of the body."""
    try:
        decoder.receive_data(data)
        events: list[Event] = []
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            if not isinstance(event, Preamble):
                events.append(event)
        return events
    except RequestEntityTooLarge:
        raise TooLarge(f"The form has more than {MAX_PARTS} parts, or a part's head has no end.") from None
    except ValueError as error:
        raise Malformed(f"The body is not multipart/form-data: {str(error)[:120]}.") from None
