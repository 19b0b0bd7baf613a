"""The sending half of a session: everything that goes out passes here, one task writes it.

Nobody but `run` touches the link for writing, so no caller's cancellation can break it.
"""

from __future__ import annotations

import trio

from llmesh.core.credit import SESSION_WINDOW, SendWindow
from llmesh.core.frames import Frame
from llmesh.core.outbox import Outbox
from llmesh.errors import NetworkError
from llmesh.net.host import Link
from llmesh.wire.session import encode

__all__ = ["Sender"]

MAX_QUEUED = 2 * SESSION_WINDOW
"""Bytes that may wait for the link.  Messages stay below by credit; only a peer that makes us answer
and does not read gets there, and loses the session."""


class Sender:
    """Queues frames and writes them in batches of whatever is ready.

    `window` is the credit of the session; whoever waits for it leaves an event in `starved`.
    Once `over`, nothing goes out any more.
    """

    def __init__(self, link: Link) -> None:
        self.window = SendWindow(SESSION_WINDOW)
        self.starved: set[trio.Event] = set()
        self.over = False
        self._link = link
        self._outbox = Outbox()
        self._work = trio.Event()

    def post(self, frame: Frame) -> None:
        """Queue a frame that may overtake large pieces of its own call."""
        self._outbox.post(encode(frame))
        self._work.set()

    def add(self, call: int, frame: Frame, cost: int = 0) -> None:
        """Queue a frame behind all earlier ones of its call; its cost is taken from the session."""
        self.window.left -= cost
        self._outbox.add(call, encode(frame), cost)
        self._work.set()

    def drop(self, call: int) -> None:
        """Forget what still waits of a call, as far as it consists of large pieces."""
        if cost := self._outbox.drop(call):
            self.grant(cost)

    def grant(self, amount: int) -> None:
        """The peer has read that much.  Raises ValidationFailed beyond what was sent."""
        self.window.grant(amount)
        self._wake()

    def check(self) -> None:
        """Raises NetworkError where the peer makes us answer and does not read the answers."""
        if self._outbox.size > MAX_QUEUED:
            raise NetworkError("The peer asks for more than it reads.")

    def close(self) -> None:
        """Send nothing any more and let everyone who waits know."""
        self.over = True
        self._wake()

    async def run(self) -> None:
        """Write until cancelled.  Raises NetworkError when the link is gone."""
        while True:
            while data := self._outbox.batch():
                await self._link.write(data)
            self._work = trio.Event()
            await self._work.wait()

    def _wake(self) -> None:
        for event in self.starved:
            event.set()
        self.starved.clear()
