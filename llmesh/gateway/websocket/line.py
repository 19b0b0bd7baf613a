"""Line: what a WebSocket needs of Hypercorn beyond ASGI.

Hypercorn goes on storing a message that is over its limit, unpacks compressed ones without one, and
leaves an application no way to ping or to hang up on a client that does not read.  So each stream gets
a buffer that forgets what is too much, agrees to no compression, and is handed to the application as a
Line in the scope's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any, Final

import trio
from hypercorn.protocol.ws_stream import WebsocketBuffer, WSStream
from hypercorn.typing import ASGISendCallable, WebsocketScope
from quart import Websocket
from wsproto.events import Message, Ping

__all__ = ["MAX_FRAME", "OVERSIZED", "Line", "lay", "line_of"]

MAX_FRAME = 1 << 20
"""Bytes of one message of a client; of a text its characters."""
MAX_DISCARDED = 64 << 20
"""Bytes of one message that are read and forgotten, so that its sender gets to read why."""


class _Oversized(str):
    __slots__ = ()


OVERSIZED: Final = _Oversized("oversized")
"""What the application receives, this very object, in the place of a message that was too large."""

_LINE = "line"


@dataclass(frozen=True, slots=True)
class Line:
    """The connection under one WebSocket: `stopping` is set when the server stops, `abort` hangs up."""

    stopping: trio.Event
    abort: Callable[[], None]
    _stream: WSStream

    async def ping(self) -> None:
        """Send a ping of the protocol, which browsers answer by themselves."""
        await self._stream._send_wsproto_event(Ping())


class _Bounded(WebsocketBuffer):
    """Keeps at most MAX_FRAME of a message; calls `abort` for one that goes on and on."""

    def __init__(self, abort: Callable[[], None]) -> None:
        super().__init__(MAX_FRAME)
        self._abort = abort

    def extend(self, event: Message[Any]) -> None:
        self.length += len(event.data)
        if self.length > MAX_DISCARDED:
            self._abort()
        if self.length > MAX_FRAME:
            self.value = None
            return
        if self.value is None:
            self.value = StringIO() if isinstance(event.data, str) else BytesIO()
        self.value.write(event.data)

    def to_message(self) -> dict[str, Any]:
        if self.length > MAX_FRAME:
            return {"type": "websocket.receive", "bytes": None, "text": OVERSIZED}
        message: dict[str, Any] = super().to_message()
        return message


def lay(scope: WebsocketScope, send: ASGISendCallable) -> None:
    """Put a Line under the WebSocket of this scope; `send` is what Hypercorn gave the application."""
    stream: WSStream = send.__self__  # type: ignore[attr-defined]  # a bound method of 0.18's stream
    ends = scope["state"]
    stream.buffer = _Bounded(ends["abort"])
    stream.handshake.extensions = None
    scope["state"][_LINE] = Line(ends["stopping"], ends["abort"], stream)


def line_of(websocket: Websocket) -> Line:
    """The line under a WebSocket."""
    line: Line = websocket.scope["state"][_LINE]
    return line
