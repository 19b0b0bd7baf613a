"""Session: the long-lived conversation with one peer, many calls at a time.

One task reads and hands out frames without ever waiting, one writes (net/sender), one watches for
silence; the handlers of incoming calls run in net/incoming.  A peer that breaks the protocol loses
the session, with one line in the log, and nothing else.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import trio

from llmesh.core.credit import OVERHEAD, SESSION_WINDOW, ReceiveWindow
from llmesh.core.frames import Cancel, Credit, End, Failed, Frame, Hello, Message, Open, Ping, Pong
from llmesh.core.framing import Splitter
from llmesh.errors import MeshError, NetworkError, TooLarge, ValidationFailed, error_from_code
from llmesh.net.call import MAX_MESSAGE, Budget, Call, Handler
from llmesh.net.host import Link
from llmesh.net.incoming import Incoming
from llmesh.net.sender import Sender
from llmesh.wire.session import MAX_PROTOCOL, decode

__all__ = ["Session"]

log = logging.getLogger(__name__)

GREETING = 10.0
# At rest one side asks and the other answers: with equal patience both would ask at the same time.
PING_AFTER = 6.0
PING_AFTER_OF_ACCEPTOR = 7.5
DEAD_AFTER = 15.0
CLOSING = 2.0
MAX_ID = (1 << 32) - 1
FIRST_PAYLOAD = 8 << 10
"""Bytes of the first message that travel in OPEN: few, so that OPENs leave in the order of their ids."""
_NUMBERS = itertools.count(1)


class Session:
    """One peer pair, many calls.

    `hello` is what the peer said first and `round_trip` the seconds that the last ping took; `number`
    is higher than that of every session made before.
    """

    hello: Hello

    def __init__(
        self,
        link: Link,
        handlers: Mapping[str, Handler],
        hello: Hello,
        on_greeted: Callable[[Session], None],
    ) -> None:
        """Speak over `link`, serve incoming calls by protocol, introduce ourselves with `hello`.

        `on_greeted` is told once the peer has said its own hello, before any call is served.
        """
        self.peer_id = link.peer_id
        self.remote_address = link.remote_address
        self.initiator = link.initiator
        self.number = next(_NUMBERS)
        self.round_trip: float | None = None
        self._link = link
        self._sender = Sender(link)
        self._window = ReceiveWindow(SESSION_WINDOW)
        self._budget = Budget()
        self._calls: dict[int, Call] = {}  # that we opened
        self._incoming = Incoming(handlers, self._sender)
        self._next_id = 1 if link.initiator else 2
        self._last_id = 0  # of the peer's calls
        self._scope = trio.CancelScope()
        self._heard = 0.0
        self._asked_at: float | None = None  # the ping that has no answer yet
        self._on_greeted = on_greeted
        self._greeted = trio.Event()
        self._over: str | None = None
        # What may arrive, and who takes it; at first only the peer's hello.
        self._on: dict[type[Frame], Callable[[Any], None]] = {Hello: self._greet}
        self._sender.post(hello)

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self._calls and not self._incoming.calls

    @property
    def spent(self) -> bool:
        """Whether no call can be opened any more: the session is over or its numbers are used up."""
        return self._over is not None or self._next_id > MAX_ID

    def call(
        self, protocol: str, message: bytes, *, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Call]:
        """Open a call with its first message; leaving the context early cancels it at the peer.

        `timeout` (seconds) is told to the peer, which stops after it and answers RequestTimeout;
        the caller's own scope bounds the wait here.  Entering raises NetworkError on a session that
        is over, TooLarge for a message over 64 MiB.  Cancelling at any point is safe.
        """
        if len(protocol) > MAX_PROTOCOL:
            raise ValueError(f"a protocol's name has at most {MAX_PROTOCOL} characters")
        return _Opening(self, self._new_call(protocol, timeout), message)

    async def run(self) -> None:
        """Keep the conversation going until the link is gone, the peer breaks the rules or `close`.

        Handlers run in here: they are cancelled when it ends, and so is everything when it is.
        """
        self._heard = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    for task in (self._sender.run, self._read, self._watch):
                        self._nursery.start_soon(self._until_over, task)
        finally:
            self._end("this node stopped it")
            with trio.move_on_after(CLOSING) as closing:
                closing.shield = True
                await self._link.aclose()

    def close(self) -> None:
        """End the session now; calls under way fail with NetworkError on both sides."""
        self._end("this node closed it")

    async def begin(self, call: Call, message: bytes) -> None:
        """Send OPEN and the rest of the first message; for `call` only."""
        if len(message) > MAX_MESSAGE:
            raise TooLarge(f"A message of {len(message)} bytes is over the limit of {MAX_MESSAGE}.")
        first = message if len(message) <= FIRST_PAYLOAD else message[:FIRST_PAYLOAD]
        if self.spent or not call.take_credit(len(first) + OVERHEAD):
            await call.wait_for_credit(len(first) + OVERHEAD)
        if self.spent:
            raise NetworkError(f"The session with {self.peer_id} is over.", peer_id=self.peer_id)
        call.id, self._next_id = self._next_id, self._next_id + 2
        self._calls[call.id] = call
        more = len(message) > len(first)
        frame = Open(call.id, call.protocol, _milliseconds(call.timeout), first, more)
        self._sender.add(call.id, frame, len(first) + OVERHEAD)
        if more:
            await call.send_from(message, FIRST_PAYLOAD)

    def leave(self, call: Call) -> None:
        """The opener is done with the call; for `call` only."""
        if self._calls.pop(call.id, None) is not None:
            self._sender.drop(call.id)
            self._sender.post(Cancel(call.id))
        call.release()

    # --- what keeps running -----------------------------------------------------------------

    async def _until_over(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except NetworkError as error:
            log.info("session with %s is over: %s", self.peer_id, error.message)
            self._end(error.message)
        except ValidationFailed as error:
            log.warning("session with %s closed, it breaks the protocol: %s", self.peer_id, error.message)
            self._end(error.message)

    async def _read(self) -> None:
        splitter = Splitter()
        while True:
            data = await self._link.read()
            self._heard = trio.current_time()
            for body in splitter.feed(data):
                if (frame := decode(body)) is not None:
                    self._dispatch(frame)
            self._sender.check()

    async def _watch(self) -> None:
        """Ping in silence, give up after too much of it."""
        with trio.move_on_after(GREETING):
            await self._greeted.wait()
        if not self._greeted.is_set():
            raise NetworkError(f"The peer said no hello in {GREETING:.0f} s.")
        self._ping()
        patience = PING_AFTER if self.initiator else PING_AFTER_OF_ACCEPTOR
        # Instants are compared, not differences: those round, and a clock that jumps from deadline to
        # deadline would then never pass one.
        while (now := trio.current_time()) < self._heard + DEAD_AFTER:
            if now < self._heard + patience:
                await trio.sleep_until(self._heard + patience)
            else:
                self._ping()
                await trio.sleep_until(min(now + patience, self._heard + DEAD_AFTER))
        raise NetworkError(f"The peer was silent for {DEAD_AFTER:.0f} s.")

    def _ping(self) -> None:
        self._asked_at = trio.current_time()
        self._sender.post(Ping())

    def _end(self, reason: str) -> None:
        if self._over is not None:
            return
        self._over = reason
        for call in (*self._calls.values(), *self._incoming.calls.values()):
            call.end(NetworkError(f"The session with {self.peer_id} is over: {reason}", peer_id=self.peer_id))
        self._calls.clear()
        self._sender.close()
        self._scope.cancel()

    # --- what arrives; nothing below waits ----------------------------------------------------

    def _dispatch(self, frame: Frame) -> None:
        take = self._on.get(type(frame))
        if take is None:
            raise ValidationFailed(f"{type(frame).__name__} is out of place.")
        take(frame)

    def _greet(self, frame: Hello) -> None:
        self.hello = frame
        self._on = {
            Message: self._messaged,
            Open: self._opened,
            End: self._ended,
            Failed: self._failed,
            Credit: self._credited,
            Cancel: self._cancelled,
            Ping: self._pinged,
            Pong: self._ponged,
        }
        self._greeted.set()
        self._on_greeted(self)

    def _read_of_session(self, payload: bytes) -> None:
        if owed := self._window.pass_on(len(payload) + OVERHEAD):
            self._sender.post(Credit(0, owed))

    def _ours(self, call: int) -> bool:
        return call % 2 == self._next_id % 2

    def _known(self, call: int) -> Call | None:
        """The call of that number, None where it is over.  Raises ValidationFailed if it never was."""
        ours = self._ours(call)
        known = (self._calls if ours else self._incoming.calls).get(call)
        if known is None and call >= (self._next_id if ours else self._last_id + 1):
            raise ValidationFailed(f"Call {call} was never opened.")
        return known

    def _opened(self, frame: Open) -> None:
        self._read_of_session(frame.payload)
        if self._ours(frame.call) or frame.call <= self._last_id:
            raise ValidationFailed(f"Call {frame.call} cannot be opened by the peer now.")
        self._last_id = frame.call
        timeout = frame.timeout_ms / 1000 if frame.timeout_ms else None
        self._incoming.open(self._new_call(frame.protocol, timeout), frame, self._nursery)

    def _messaged(self, frame: Message) -> None:
        payload = bytes(frame.payload)
        self._read_of_session(payload)
        if (call := self._known(frame.call)) is not None:
            call.arrive(payload, frame.more)

    def _ended(self, frame: End) -> None:
        if (call := self._known(frame.call)) is None:
            return
        if self._ours(call.id):
            self._settle(call, None)
        else:
            call.finish()

    def _failed(self, frame: Failed) -> None:
        if (call := self._known(frame.call)) is None:
            return
        if not self._ours(call.id):
            raise ValidationFailed("An opener cancels, it does not fail.")
        error = error_from_code(
            frame.code, frame.message, peer_id=self.peer_id, retry_after=frame.retry_after
        )
        self._settle(call, error)

    def _settle(self, call: Call, failure: MeshError | None) -> None:
        """The handler's last word on a call of ours."""
        del self._calls[call.id]
        self._sender.drop(call.id)
        call.end(failure)

    def _credited(self, frame: Credit) -> None:
        if frame.call == 0:
            self._sender.grant(frame.amount)
        elif (call := self._known(frame.call)) is not None:
            call.grant(frame.amount)

    def _cancelled(self, frame: Cancel) -> None:
        if (call := self._known(frame.call)) is None:
            return
        if self._ours(call.id):
            raise ValidationFailed("A handler fails, it does not cancel.")
        self._incoming.cancel(call)

    def _pinged(self, _frame: Ping) -> None:
        self._sender.post(Pong())

    def _ponged(self, _frame: Pong) -> None:
        if self._asked_at is not None:
            self.round_trip = trio.current_time() - self._asked_at
            self._asked_at = None

    def _new_call(self, protocol: str, timeout: float | None) -> Call:
        return Call(self.peer_id, self.number, protocol, timeout, self._sender, self._budget)


class _Opening:
    """The context of a call that this side opens."""

    __slots__ = ("_call", "_message", "_session")

    def __init__(self, session: Session, call: Call, message: bytes) -> None:
        self._session, self._call, self._message = session, call, message

    async def __aenter__(self) -> Call:
        try:
            await self._session.begin(self._call, self._message)
        except BaseException:
            self._session.leave(self._call)
            raise
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.leave(self._call)


def _milliseconds(timeout: float | None) -> int:
    """0 for no limit, otherwise at least 1 and at most what fits 32 bits."""
    return 0 if timeout is None else max(1, round(min(timeout * 1000, MAX_ID)))
