"""The body of a request, held back while nobody takes it, so that its size costs no memory.

Quart would read on for as long as a client sends, whoever reads; here at most HELD bytes (and one
piece) wait, and the socket's own flow control holds the client back.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent
from quart import Request, Response
from quart.wrappers.response import IterableBody, ResponseBody
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

__all__ = ["HELD", "Body", "HeldBack", "linger", "unpacked"]

HELD = 256 * 1024
"""Bytes of a body that wait for their reader; its sender waits when it is full."""
_EITHER = zlib.MAX_WBITS | 32
"""Tells the two formats by their first bytes."""
LINGER = 2.0
"""Seconds to go on discarding a body that was refused, so that its sender gets to read why."""


class Body:
    """What a client sends: Quart appends, one reader takes; `whole` once its end has come."""

    def __init__(self, expected: int | None, most: int | None) -> None:
        self.whole = False
        self._held = bytearray()
        self._unwanted = False
        self._changed = trio.Event()

    def append(self, data: bytes) -> None:
        """The next bytes of the client."""
        if data and not self._unwanted:
            self._held += data
            self._wake()

    def set_complete(self) -> None:
        """The client has sent everything."""
        self.whole = True
        self._wake()

    async def room(self) -> None:
        """Wait until more may come."""
        while len(self._held) >= HELD:
            await self._changed.wait()

    async def take(self) -> bytes:
        """What has come since the last time, at least a byte; nothing once all was taken."""
        while not self._held and not self.whole:
            await self._changed.wait()
        taken = bytes(self._held)
        self._held.clear()
        self._wake()
        return taken

    def discard(self) -> None:
        """Take no more of it; what still comes is dropped."""
        self._unwanted = True
        self._held.clear()
        self._wake()

    async def ended(self) -> None:
        """Wait for its end."""
        while not self.whole:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class HeldBack(TrioASGIHTTPConnection):
    """One request and its answer, whose body is read no faster than it is wanted."""

    async def handle_messages(  # type: ignore[override]  # as Quart-Trio has it
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Pass on what the client sends until it is gone."""

        async def receive_when_wanted() -> ASGIReceiveEvent:
            await request.body.room()  # type: ignore[attr-defined]  # it is a Body
            return await receive()

        await super().handle_messages(nursery, request, receive_when_wanted)


def unpacked(data: bytes, encoding: str, most: int) -> bytes:
    """What a client has compressed, of at most so many bytes, by gzip or deflate.

    Raises UnsupportedMediaType for another encoding, BadRequest for data that are not of it,
    RequestEntityTooLarge (all werkzeug's).
    """
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding[:20]!r} is not taken; send gzip or deflate, or the body as it is."
        )
    inflating = zlib.decompressobj(_EITHER)
    try:
        whole = inflating.decompress(data, most + 1)
    except zlib.error:
        whole = b""
    if len(whole) > most:
        raise RequestEntityTooLarge
    if not inflating.eof or inflating.unused_data:
        raise BadRequest(f"The body is not {encoding}, as its Content-Encoding says.")
    return whole


def linger(response: Response, body: Body) -> None:
    """Say all, then hang up a little later: closing on unread bytes can take the answer with it."""
    body.discard()
    response.headers["Connection"] = "close"
    response.response = IterableBody(_then_wait(response.response, body))


async def _then_wait(answer: ResponseBody, body: Body) -> AsyncIterator[bytes]:
    async with answer as parts:
        async for part in parts:
            yield part
    with trio.move_on_after(LINGER):
        await body.ended()
