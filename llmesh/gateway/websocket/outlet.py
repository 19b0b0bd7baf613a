"""Outlet: what leaves by one socket, a whole frame at a time, in the order of asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from quart import Websocket

from llmesh.gateway.websocket.frames import NodeFrame, to_text

__all__ = ["MAX_REPLIES", "Outlet"]

MAX_REPLIES = 64
"""Small answers that wait for the client to read."""


class Outlet:
    """Sends for all tasks of a socket; `run` sends the replies, which nobody waits for."""

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = websocket
        self._turn = trio.Lock()
        self._since: float | None = None
        self._reply, self._replies = trio.open_memory_channel[NodeFrame](MAX_REPLIES)

    @property
    def stuck(self) -> float:
        """Seconds that the present frame has been waiting for the client to read."""
        return 0.0 if self._since is None else trio.current_time() - self._since

    async def send(self, frame: NodeFrame) -> None:
        """Send and wait until the connection has taken it.

        Raises RecursionError or UnicodeEncodeError, before anything is sent, for what no JSON can hold.
        """
        await self.say(to_text(frame))

    async def say(self, text: str) -> None:
        """Send a frame that is written already."""
        await self.alone(lambda: self._websocket.send(text))

    def reply(self, frame: NodeFrame) -> None:
        """Send without waiting.  Raises trio.WouldBlock where MAX_REPLIES wait already."""
        self._reply.send_nowait(frame)

    async def run(self) -> None:
        """Send the replies."""
        async for frame in self._replies:
            await self.send(frame)

    async def alone(self, send: Callable[[], Awaitable[None]]) -> None:
        """Do `send` when all before it have been sent."""
        async with self._turn:
            self._since = trio.current_time()
            try:
                await send()
            finally:
                self._since = None
