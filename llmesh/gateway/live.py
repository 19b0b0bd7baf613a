"""Live answers: streams of server-sent events, whose first event still decides the HTTP status.

Until the first piece is there nothing has been sent, so a failure is an ordinary error answer; after
it, a failure is told within the stream.  The stream is opened and closed by the task that sends it: a
client that hangs up cancels that task, and with it the work.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeAlias

from hypercorn.typing import ASGISendCallable
from quart import Response
from quart.utils import encode_headers
from quart.wrappers.response import DataBody, IterableBody
from werkzeug.datastructures import Headers
from werkzeug.wrappers import Response as WerkzeugResponse

from llmesh.errors import MeshError, ModelFailed
from llmesh.gateway.body import HeldBack

__all__ = ["EVENT_STREAM", "Connection", "Live", "server_sent", "with_failure"]

EVENT_STREAM = "text/event-stream"

Opened: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Starts the work; the block iterates over pieces of the body.  Failing raises MeshError."""


class Live(Response):
    """An answer that is made while it is sent; `tell` makes the answer for a failure before it begins."""

    def __init__(self, opened: Opened, tell: Callable[[MeshError], Response]) -> None:
        super().__init__(b"", content_type=EVENT_STREAM, headers={"Cache-Control": "no-store"})
        del self.headers["Content-Length"]
        self.timeout = None  # the request has its own
        self.opened = opened
        self.tell = tell


class Connection(HeldBack):
    """One request and its answer, which may be live."""

    async def _send_response(self, send: ASGISendCallable, response: Response | WerkzeugResponse) -> None:
        if isinstance(response, Live) and self.scope["method"] != "HEAD":
            await self._send_live(send, response)
        elif isinstance(response, Response) and isinstance(response.response, DataBody):
            await _send_whole(send, response, response.response.data)
        else:
            await super()._send_response(send, response)

    async def _send_live(self, send: ASGISendCallable, response: Live) -> None:
        try:
            async with response.opened() as pieces:
                first = await anext(pieces, None)
                if first is None:
                    raise ModelFailed("The answer ended before it began.")
                response.response = IterableBody(_again(first, pieces))
                await super()._send_response(send, response)
        except MeshError as error:
            failed = response.tell(error)
            _stamp(failed.headers, response.headers)
            await super()._send_response(send, failed)


def server_sent(data: bytes, event: str = "") -> bytes:
    """One event of a stream (HTML standard, 9.2); `data` is one line."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + data + b"\n\n"


async def with_failure(
    pieces: AsyncGenerator[bytes], tell: Callable[[MeshError], bytes]
) -> AsyncGenerator[bytes]:
    """The pieces; a failure after the first is told as one more."""
    begun = False
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                begun = True
                yield piece
    except MeshError as error:
        if not begun:
            raise
        yield tell(error)


async def _send_whole(send: ASGISendCallable, response: Response, body: bytes) -> None:
    """Quart would send the end of the body by itself, which costs a third of what the answer does."""
    headers = encode_headers(response.headers)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _again(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _stamp(failed: Headers, planned: Headers) -> None:
    """What every answer of the gateway carries."""
    for name, value in planned.items():
        if name.startswith("X-"):
            failed[name] = value
