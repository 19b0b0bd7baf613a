"""One call of a session: messages both ways between the opener and a handler, each way with credit.

A call knows nothing of the link; it hands frames to the session's sender and is told by the
session's reader what arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import trio

from llmesh.core.credit import CALL_WINDOW, OVERHEAD, ReceiveWindow, SendWindow
from llmesh.core.frames import MAX_PAYLOAD, Credit, Message
from llmesh.core.ids import PeerId
from llmesh.errors import MeshError, NetworkError, NodeBusy, TooLarge
from llmesh.net.sender import Sender

__all__ = ["MAX_MESSAGE", "Budget", "Call", "Handler", "Windows"]

MAX_MESSAGE = 64 << 20
"""The longest message of a call, in bytes."""


@dataclass(slots=True)
class Budget:
    """Bytes that the unfinished messages of one session may hold together."""

    left: int = 2 * MAX_MESSAGE


class Windows(NamedTuple):
    """Bytes of credit that each direction of a call has at its start, as this side sees it."""

    incoming: int = CALL_WINDOW
    outgoing: int = CALL_WINDOW


_USUAL = Windows()


class Call:
    """Messages to and from one peer about one matter.

    One task sends and one task receives, which may be the same.  Cancelling either loses nothing
    that was whole: an unfinished message goes on arriving.  `timeout` (seconds) is what the opener
    gave for the whole call; None means no limit.
    """

    __slots__ = (
        "_arrival", "_budget", "_deaf", "_failure", "_inbox", "_incoming", "_mute", "_outgoing",
        "_parts", "_sender", "_size", "_turn", "cancelled", "id", "peer_id", "protocol", "scope",
        "timeout",
    )  # fmt: skip

    def __init__(
        self,
        peer: PeerId,
        protocol: str,
        timeout: float | None,
        sender: Sender,
        budget: Budget,
        windows: Windows = _USUAL,
    ) -> None:
        self.peer_id = peer
        self.protocol = protocol
        self.timeout = timeout
        self.id = 0
        self.scope = trio.CancelScope()
        self.cancelled = False
        self._sender = sender
        self._budget = budget
        self._incoming = ReceiveWindow(windows.incoming)
        self._outgoing = SendWindow(windows.outgoing)
        self._inbox: deque[tuple[bytes, bool]] = deque()
        self._parts: list[bytes] = []
        self._size = 0
        self._arrival: trio.Event | None = None
        self._turn: trio.Event | None = None
        self._failure: MeshError | None = None
        self._deaf = False  # nothing more will come
        self._mute = False  # nothing more may be sent

    async def send(self, message: bytes) -> None:
        """Send one message; waits while the other side has not taken enough of the earlier ones.

        Raises TooLarge over `MAX_MESSAGE`, and the error that ended the call.  A message that was
        cancelled half-way makes the call useless: leave it.
        """
        if len(message) > MAX_MESSAGE:
            raise TooLarge(f"A message of {len(message)} bytes is over the limit of {MAX_MESSAGE}.")
        await self.send_from(message, 0)

    async def send_from(self, message: bytes, start: int) -> None:
        """Send a message from a byte on: the opener's first one begins in OPEN."""
        more = True
        while more:
            end = start + MAX_PAYLOAD
            more = end < len(message)
            await self._send_piece(message[start:end], more)
            start = end

    async def receive(self) -> bytes:
        """The next whole message.

        Raises the error with which the other side failed (`remote` is set), NetworkError when the
        session is gone, TooLarge or NodeBusy when the message does not fit, and trio.EndOfChannel
        after the last message.
        """
        while (message := self._take()) is None:
            if self._failure is not None:
                raise self._failure
            if self._deaf:
                raise trio.EndOfChannel
            self._arrival = trio.Event()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None
        return message

    async def reserve(self, cost: int) -> None:
        """Take credit of this call and wait for the session's; the caller sends at once."""
        while True:
            if self._mute:
                raise self._failure or NetworkError("The call is over.", peer_id=self.peer_id)
            if self._sender.over:
                raise NetworkError("The session is over.", peer_id=self.peer_id)
            if self._outgoing.left >= cost and self._sender.window.left >= cost:
                self._outgoing.left -= cost
                return
            await self._wait_for_credit(starved=self._outgoing.left >= cost)

    def arrive(self, payload: bytes, more: bool) -> None:
        """The reader hands in a piece of a message.  Raises ValidationFailed for one without credit."""
        self._incoming.arrive(len(payload) + OVERHEAD)
        if self._deaf:
            return
        self._inbox.append((payload, more))
        if self._arrival is not None:
            if more:
                self._take()  # someone waits for the whole: make room without waking it
            else:
                self._arrival.set()

    def grant(self, amount: int) -> None:
        """The other side has taken that much.  Raises ValidationFailed beyond what was sent."""
        self._outgoing.grant(amount)
        if self._turn is not None:
            self._turn.set()

    def finish(self) -> None:
        """The other side sends no more; what has arrived stays to be received."""
        self._deaf = True
        self._wake()

    def end(self, failure: MeshError | None = None) -> None:
        """Nothing goes either way any more; what has arrived stays, then comes the failure."""
        self._mute = self._deaf = True
        self._failure = self._failure or failure
        self._wake()

    def release(self) -> None:
        """Let go of whatever is still held."""
        self.end()
        self._inbox.clear()
        self._forget_parts()

    async def _send_piece(self, payload: bytes, more: bool) -> None:
        cost = len(payload) + OVERHEAD
        await self.reserve(cost)
        self._sender.add(self.id, Message(self.id, payload, more), cost)

    async def _wait_for_credit(self, starved: bool) -> None:
        self._turn = turn = trio.Event()
        if starved:
            self._sender.starved.add(turn)
        try:
            await turn.wait()
        finally:
            self._turn = None
            self._sender.starved.discard(turn)

    def _wake(self) -> None:
        for event in (self._arrival, self._turn):
            if event is not None:
                event.set()

    def _take(self) -> bytes | None:
        """Move what has arrived to the message under way, up to its end; the message if whole."""
        while self._inbox:
            payload, more = self._inbox.popleft()
            if (owed := self._incoming.take(len(payload) + OVERHEAD)) and not self._deaf:
                self._sender.post(Credit(self.id, owed))
            if not more and not self._parts:
                return payload
            if not self._hold(payload):
                return None
            if not more:
                message = b"".join(self._parts)
                self._forget_parts()
                return message
        return None

    def _hold(self, payload: bytes) -> bool:
        """Keep a piece of the message under way, unless that grows too large; then the call fails."""
        size = len(payload)
        if self._size + size > MAX_MESSAGE:
            self.end(TooLarge(f"A message is over the limit of {MAX_MESSAGE} bytes."))
        elif size > self._budget.left:
            self.end(NodeBusy("Too many unfinished messages on this session.", retry_after=1.0))
        else:
            self._budget.left -= size
            self._size += size
            self._parts.append(payload)
            return True
        self._inbox.clear()
        return False

    def _forget_parts(self) -> None:
        self._budget.left += self._size
        self._size = 0
        self._parts.clear()


Handler: TypeAlias = Callable[[Call, bytes], Awaitable[None]]
"""Serves a call; gets the opener's first message.  Returning ends the call, a MeshError fails it.

It is cancelled when the opener leaves, when the opener's timeout has passed (the opener then sees
RequestTimeout), and when the session ends."""
