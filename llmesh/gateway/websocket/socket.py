"""Socket: one client of /ws, from its acceptance to the reason for closing.

Reading never waits for writing, so a client that leaves is always noticed; one that asks on and on
without reading the answers is hung up on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom

import trio
from quart import Websocket
from wsproto.frame_protocol import CloseReason

from llmesh.errors import MeshError, TooLarge, Unauthorized
from llmesh.gateway.callers import Caller, Counted, Scope
from llmesh.gateway.event_schema import event_body
from llmesh.gateway.inference import Router
from llmesh.gateway.websocket.frames import (
    Auth,
    Authenticated,
    Cancel,
    ClientFrame,
    ErrorFrame,
    EventFrame,
    InferenceStream,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    decode_frame,
    id_in,
)
from llmesh.gateway.websocket.line import MAX_FRAME, OVERSIZED, line_of
from llmesh.gateway.websocket.outlet import Outlet
from llmesh.gateway.websocket.streams import Streams
from llmesh.mesh.events import Subscription

__all__ = ["BUSY", "FAULT", "Bounds", "Closing", "Socket"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many sockets there may be and what each may take; times in seconds.

    `idle` is how long one may stay without a frame, a stream or a subscription; `ping` the time between
    two looks at it and pings; `patience` how long one frame may wait for the client to read; `auth` how
    long it may stay without a key where one is asked for; `finish` what streams get when the node stops.
    """

    sockets: int = 512
    streams: int = 32
    idle: float = 120.0
    ping: float = 20.0
    patience: float = 60.0
    auth: float = 10.0
    finish: float = 1.5


@dataclass(frozen=True, slots=True)
class Closing:
    """Why a socket is closed: a code of RFC 6455, never one of our errors, and words."""

    code: CloseReason
    reason: str


BUSY = Closing(CloseReason.TRY_AGAIN_LATER, "This socket made room for others, as nothing was asked on it.")
FAULT = Closing(CloseReason.INTERNAL_ERROR, "This node failed through a fault of its own.")
_chance = SystemRandom()
_IDLE = Closing(CloseReason.NORMAL_CLOSURE, "Nothing was asked for too long.")
_STOPPING = Closing(CloseReason.GOING_AWAY, "This node is shutting down.")
_NO_KEY = Closing(CloseReason.POLICY_VIOLATION, "No key that holds was shown in time.")
_TOO_LARGE = Closing(CloseReason.MESSAGE_TOO_BIG, f"A frame has at most {MAX_FRAME} bytes.")


class Socket:
    """Serves one client.  `admit` makes a caller of a key, or of none; it raises Unauthorized."""

    def __init__(
        self,
        websocket: Websocket,
        router: Router,
        subscription: Subscription,
        admit: Callable[[str | None], Caller],
        bounds: Bounds,
    ) -> None:
        self._websocket = websocket
        self._line = line_of(websocket)
        self._subscription = subscription
        self._admit = admit
        self._bounds = bounds
        self._outlet = Outlet(websocket)
        self._streams = Streams(router, self._outlet, bounds.streams)
        self._caller: Caller | None = None
        self._key: str | None = None
        self._closing = FAULT
        self._work = trio.CancelScope()
        self.heard_at = trio.current_time()

    @property
    def unused(self) -> bool:
        """Whether nothing runs on it and nobody waits for events."""
        return not self._streams and not self._subscription.names

    def enter(self, key: str | None) -> None:
        """Let the client in by a key.  Raises Unauthorized, RateLimited."""
        caller = self._admit(key)
        caller.require(Scope.READ)
        caller.count(Counted.API)
        self._key, self._caller = key, caller

    def end(self, closing: Closing) -> None:
        """Close it, and stop whatever runs on it."""
        self._closing = closing
        self._work.cancel()

    async def run(self) -> None:
        """Serve until the client leaves, which cancels this, or there is a reason to close."""
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            try:
                with self._work:
                    async with trio.open_nursery() as nursery:
                        for task in (self._outlet.run, self._tell, self._ping, self._stop, self._expect_key):
                            nursery.start_soon(task)
                        await self._read(nursery)
            finally:
                await self._close(self._closing)
            watching.cancel_scope.cancel()

    async def _close(self, closing: Closing) -> None:
        await self._outlet.alone(lambda: self._websocket.close(closing.code, closing.reason))

    # --- what comes in --------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            data = await self._websocket.receive()
            self.heard_at = trio.current_time()
            if data is OVERSIZED:
                await self._outlet.send(ErrorFrame.of(TooLarge(_TOO_LARGE.reason)))
                self.end(_TOO_LARGE)
            else:
                self._take(data.encode() if isinstance(data, str) else data or b"", nursery)

    def _take(self, data: bytes, nursery: trio.Nursery) -> None:
        try:
            self._refuse_or_obey(data, nursery)
        except trio.WouldBlock:
            self._line.abort()

    def _refuse_or_obey(self, data: bytes, nursery: trio.Nursery) -> None:
        try:
            self._obey(decode_frame(data), nursery)
        except MeshError as error:
            id = id_in(data)
            self._outlet.reply(ErrorFrame.of(error, None if id in self._streams else id))

    def _obey(self, frame: ClientFrame, nursery: trio.Nursery) -> None:
        match frame:
            case Ping():
                self._outlet.reply(Pong(frame.id))
            case Auth():
                self.enter(frame.key)
                self._outlet.reply(Authenticated(self._present().name))
            case Subscribe():
                self._present()
                self._subscription.names.update(frame.events)
                self._outlet.reply(Subscribed(sorted(self._subscription.names)))
            case Unsubscribe():
                self._subscription.names.difference_update(frame.events)
                self._outlet.reply(Subscribed(sorted(self._subscription.names)))
            case InferenceStream():
                self._streams.start(frame, self._present(), nursery)
            case Cancel():
                self._streams.cancel(frame.id)

    def _present(self) -> Caller:
        """Who asks, as of now: a key may have been revoked.  Raises Unauthorized."""
        if self._caller is None:
            raise Unauthorized(
                "This gateway asks for a key, with the handshake or in a first frame:"
                ' {"type": "auth", "key": "llmesh_..."}.'
            )
        self._caller = self._admit(self._key)
        return self._caller

    # --- what goes on beside it -----------------------------------------------------------------

    async def _tell(self) -> None:
        async for told in self._subscription:
            await self._outlet.send(EventFrame(told.event.name, event_body(told.event), told.dropped))

    async def _watch(self) -> None:
        """Hang up on a client that does not read, also while closing."""
        while True:
            await trio.sleep(self._bounds.ping)
            if self._outlet.stuck >= self._bounds.patience:
                self._line.abort()

    async def _ping(self) -> None:
        """Look after a client that may be gone, or may be here no longer by right.

        The first time comes at random, so that sockets which opened together are not all seen to at once.
        """
        wait = self._bounds.ping * _chance.random()
        while True:
            await trio.sleep(wait)
            wait = self._bounds.ping
            if self.unused and trio.current_time() - self.heard_at >= self._bounds.idle:
                self.end(_IDLE)
            try:
                if self._caller is not None:
                    self._present()
            except MeshError:
                self.end(_NO_KEY)
            await self._outlet.alone(self._line.ping)

    async def _stop(self) -> None:
        await self._line.stopping.wait()
        with trio.move_on_after(self._bounds.finish):
            await self._streams.finished()
        self.end(_STOPPING)

    async def _expect_key(self) -> None:
        await trio.sleep(self._bounds.auth)
        if self._caller is None:
            self.end(_NO_KEY)
