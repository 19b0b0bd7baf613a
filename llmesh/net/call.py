"""One call of a session: messages both ways between the opener and a handler, each way with credit.

A call knows nothing of the link; it hands frames to the session's sender and is told by the
session's reader what arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import trio

from llmesh.core.credit import CALL_WINDOW, OVERHEAD, ReceiveWindow, SendWindow
from llmesh.core.frames import MAX_PAYLOAD, Credit, Message
from llmesh.core.ids import PeerId
from llmesh.errors import MeshError, NetworkError, NodeBusy, TooLarge
from llmesh.net.sender import Sender

__all__ = ["MAX_MESSAGE", "Budget", "Call", "Handler"]

MAX_MESSAGE = 64 << 20
"""The longest message of a call, in bytes."""


@dataclass(slots=True)
class Budget:
    """What may be held for one session of messages that nobody has received yet, in credit."""

    left: int = 2 * MAX_MESSAGE


class Call:
    """Messages to and from one peer about one matter.

    One task sends and one task receives, which may be the same.  Cancelling either loses nothing
    that was whole: an unfinished message goes on arriving.  `timeout` (seconds) is what the opener
    gave for the whole call; None means no limit.  `session` is the number of its session.
    """

    __slots__ = (
        "_arrival", "_budget", "_deaf", "_failure", "_held", "_inbox", "_incoming", "_mute", "_outgoing",
        "_parts", "_sender", "_size", "_turn", "id", "peer_id", "protocol", "session", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        peer: PeerId,
        session: int,
        protocol: str,
        timeout: float | None,
        sender: Sender,
        budget: Budget,
    ) -> None:
        self.peer_id = peer
        self.session = session
        self.protocol = protocol
        self.timeout = timeout
        self.id = 0
        self._sender = sender
        self._budget = budget
        self._incoming = ReceiveWindow(CALL_WINDOW)
        self._outgoing = SendWindow(CALL_WINDOW)
        self._inbox: deque[tuple[bytes, bool]] = deque()
        self._parts: list[bytes] = []
        self._size = self._held = 0
        self._arrival: trio.Event | None = None
        self._turn: trio.Event | None = None
        self._failure: MeshError | None = None
        self._deaf = False  # nothing more will come
        self._mute = False  # nothing more may be sent

    async def send(self, message: bytes | memoryview) -> None:
        """Send one message; waits while the other side has not taken enough of the earlier ones.

        Raises TooLarge over `MAX_MESSAGE`, and the error that ended the call.  A message that was
        cancelled half-way makes the call useless: leave it.
        """
        size = len(message)
        if size > MAX_MESSAGE:
            raise TooLarge(f"A message of {size} bytes is over the limit of {MAX_MESSAGE}.")
        if size <= MAX_PAYLOAD:
            await self._send_piece(message, False)
        else:
            await self.send_from(message, 0)

    async def send_from(self, message: bytes | memoryview, start: int) -> None:
        """Send a message from a byte on: the opener's first one begins in OPEN."""
        whole = memoryview(message)
        for piece in range(start, len(message), MAX_PAYLOAD):
            end = piece + MAX_PAYLOAD
            await self._send_piece(whole[piece:end], end < len(message))

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
            self._arrival = arrival = trio.Event()
            try:
                await arrival.wait()
            finally:
                self._arrival = None
        return message

    @property
    def over(self) -> bool:
        """Whether nothing may be sent any more."""
        return self._mute

    def take_credit(self, cost: int) -> bool:
        """Whether the cost could be taken from the call's credit now; the session's is the sender's."""
        if self._mute or self._outgoing.left < cost or self._sender.window.left < cost:
            return False
        self._outgoing.left -= cost
        return True

    async def wait_for_credit(self, cost: int) -> None:
        """Take credit as soon as call and session have it.  Raises the error that ended the call."""
        while not self.take_credit(cost):
            if self._mute:
                raise self._failure or NetworkError("The call is over.", peer_id=self.peer_id)
            if self._sender.over:
                raise NetworkError("The session is over.", peer_id=self.peer_id)
            self._turn = turn = trio.Event()
            if self._outgoing.left >= cost:
                self._sender.starved.add(turn)
            try:
                await turn.wait()
            finally:
                self._turn = None
                self._sender.starved.discard(turn)

    def arrive(self, payload: bytes, more: bool) -> None:
        """The reader hands in a piece of a message.  Raises ValidationFailed for one without credit."""
        cost = len(payload) + OVERHEAD
        self._incoming.arrive(cost)
        if self._deaf:
            return
        if cost > self._budget.left:
            self._give_up(NodeBusy("This session holds too much that nobody has received.", retry_after=1.0))
            return
        self._budget.left -= cost
        self._held += cost
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
        """Let go of whatever is still held; the call's own tasks are done with it."""
        self._mute = self._deaf = True
        if self._held:
            self._drop()
        self._wake()

    async def _send_piece(self, payload: bytes | memoryview, more: bool) -> None:
        cost = len(payload) + OVERHEAD
        if not self.take_credit(cost):
            await self.wait_for_credit(cost)
        self._sender.add(self.id, Message(self.id, payload, more), cost)

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()
        if self._turn is not None:
            self._turn.set()

    def _take(self) -> bytes | None:
        """Move what has arrived to the message under way, up to its end; the message if whole."""
        while self._inbox:
            payload, more = self._inbox.popleft()
            cost = len(payload) + OVERHEAD
            if (owed := self._incoming.take(cost)) and not self._deaf:
                self._sender.post(Credit(self.id, owed))
            if not more and not self._parts:
                self._let_go(cost)
                return payload
            self._parts.append(payload)
            self._size += len(payload)
            if not more:
                return self._joined()
            if self._size > MAX_MESSAGE:
                self._give_up(TooLarge(f"A message is over the limit of {MAX_MESSAGE} bytes."))
        return None

    def _joined(self) -> bytes:
        self._let_go(self._size + OVERHEAD * len(self._parts))
        message = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return message

    def _let_go(self, cost: int) -> None:
        self._budget.left += cost
        self._held -= cost

    def _give_up(self, failure: MeshError) -> None:
        """We cannot take what comes; the waiter learns it and says so."""
        self._failure = failure
        self._deaf = True
        self._drop()
        self._wake()

    def _drop(self) -> None:
        self._inbox.clear()
        self._parts.clear()
        self._let_go(self._held)


Handler: TypeAlias = Callable[[Call, bytes], Awaitable[None]]
"""Serves a call; gets the opener's first message.  Returning ends the call, a MeshError fails it.

It is cancelled when the opener leaves, when the opener's timeout has passed (the opener then sees
RequestTimeout), and when the session ends."""
