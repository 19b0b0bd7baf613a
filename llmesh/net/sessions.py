"""Sessions: at most one session in use per peer, whoever dialled.

Where two nodes dial each other at once, both keep to the session that the smaller peer id dialled;
the other is left to finish its calls and closed once it is idle.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TypeAlias

import trio

from llmesh.core.frames import Hello
from llmesh.core.ids import PeerId
from llmesh.core.meter import Meter
from llmesh.errors import MeshError, NodeUnreachable
from llmesh.net.call import Handler
from llmesh.net.host import Host, Link
from llmesh.net.metered import MeteredLink
from llmesh.net.session import Session

__all__ = ["OnChange", "Sessions", "open_sessions"]

log = logging.getLogger(__name__)

OnChange: TypeAlias = Callable[[Session, bool], None]
"""Told (session, True) when a peer's first session has opened, (session, False) when its last is over.

Called synchronously: it must neither wait nor raise."""

MAX_PER_PEER = 4
LINGER = 5.0
"""Seconds that a superfluous session is given, at least, so that the peer too has seen the other."""

DIALLING = 20.0
_AGENT = f"llmesh/{version('llmesh-network')}"


@asynccontextmanager
async def open_sessions(
    host: Host,
    handlers: Mapping[str, Handler],
    on_change: OnChange | None = None,
    meter: Meter | None = None,
) -> AsyncIterator[Sessions]:
    """Serve `handlers` (by protocol) to every peer that links to `host`; leaving closes all sessions.

    `meter` counts their bytes.
    """
    async with trio.open_nursery() as nursery:
        sessions = Sessions(host, handlers, on_change or _ignore, meter or Meter(), nursery)
        host.serve(sessions.accept)
        try:
            yield sessions
        finally:
            sessions.close()
        nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Dial:
    """A dial under way, shared by all who want that peer."""

    addresses: tuple[str, ...]
    waiting: int = 0
    error: MeshError | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Sessions:
    """The sessions of a node; made by `open_sessions`."""

    def __init__(
        self,
        host: Host,
        handlers: Mapping[str, Handler],
        on_change: OnChange,
        meter: Meter,
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._handlers = handlers
        self._on_change = on_change
        self._meter = meter
        self._nursery = nursery
        self._sessions: dict[PeerId, list[Session]] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._closed = False

    def close(self) -> None:
        """Take no more links and dial nobody: whoever still asks is told so."""
        self._closed = True

    def get(self, peer: PeerId) -> Session | None:
        """The session in use with that peer, if there is one."""
        sessions = [session for session in self._sessions.get(peer, ()) if not session.spent]
        return max(sessions, key=self._rank, default=None)

    def live(self) -> list[Session]:
        """The sessions in use, one per peer."""
        return [session for peer in self._sessions if (session := self.get(peer)) is not None]

    async def to(self, peer: PeerId, addresses: Sequence[str] = ()) -> Session:
        """The session with that peer, dialled if there is none.  Raises NodeUnreachable.

        Callers share one dial, which goes on as long as one of them waits: cancelling is safe.
        """
        while (session := self.get(peer)) is None:
            await self._dialled(peer, tuple(addresses))
        return session

    async def accept(self, link: Link) -> None:
        """Serve a link that a peer opened, until its session is over; for the host."""
        if self._closed:
            return
        over = trio.Event()
        self._nursery.start_soon(self._attend, link, over)
        await over.wait()

    async def _dialled(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Wait for the dial under way, or start one."""
        if peer == self._host.peer_id:
            raise NodeUnreachable("A node does not dial itself.", peer_id=peer)
        if self._closed:
            raise NodeUnreachable("This node is shutting down.", peer_id=peer)
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._dials[peer] = _Dial(addresses)
            self._nursery.start_soon(self._dial, peer, dial)
        dial.waiting += 1
        try:
            await dial.done.wait()
        finally:
            dial.waiting -= 1
            if not dial.waiting and not dial.done.is_set():
                self._settle(peer, dial, None)
                dial.scope.cancel()
        if dial.error is not None and set(addresses) <= set(dial.addresses):
            raise NodeUnreachable(dial.error.message, peer_id=peer)

    async def _dial(self, peer: PeerId, dial: _Dial) -> None:
        link = None
        dial.scope.deadline = trio.current_time() + DIALLING
        try:
            with dial.scope:
                link = await self._host.dial(peer, dial.addresses)
        except MeshError as error:
            dial.error = error
        if link is not None:
            await self._attend(link, trio.Event())
        unanswered = NodeUnreachable(f"{peer} did not answer the dial.")
        self._settle(peer, dial, dial.error or unanswered)

    def _settle(self, peer: PeerId, dial: _Dial, error: MeshError | None) -> None:
        """The dial is over, one way or the other."""
        if self._dials.get(peer) is dial:
            del self._dials[peer]
            dial.error = error
            dial.done.set()

    async def _attend(self, link: Link, over: trio.Event) -> None:
        """The whole life of one session."""
        hello = Hello(_AGENT, link.remote_address, self._host.addresses)
        session = Session(MeteredLink(link, self._meter), self._handlers, hello, self._add)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._retire, session)
                await session.run()
                nursery.cancel_scope.cancel()
        finally:
            self._remove(session)
            over.set()

    async def _retire(self, session: Session) -> None:
        """Close the session once another has its place and it is idle."""
        while True:
            await trio.sleep(LINGER)
            if self.get(session.peer_id) not in {None, session} and session.idle:
                session.close()

    def _add(self, session: Session) -> None:
        peer = session.peer_id
        sessions = self._sessions.setdefault(peer, [])
        if len(sessions) >= MAX_PER_PEER:
            log.warning("%s opened more than %d sessions", peer, MAX_PER_PEER)
            session.close()
            return
        sessions.append(session)
        if len(sessions) == 1:
            self._on_change(session, True)
        if (dial := self._dials.get(peer)) is not None:
            self._settle(peer, dial, None)

    def _remove(self, session: Session) -> None:
        sessions = self._sessions.get(session.peer_id, [])
        if session in sessions:
            sessions.remove(session)
            if not sessions:
                del self._sessions[session.peer_id]
                self._on_change(session, False)

    def _rank(self, session: Session) -> tuple[bool, int]:
        """Dialled by the smaller peer id first, then the newest; both sides come to the same."""
        ours_is_smaller = self._host.peer_id < session.peer_id
        newest = self._sessions[session.peer_id].index(session)
        return session.initiator is ours_is_smaller, newest


def _ignore(session: Session, opened: bool) -> None:
    """Nobody wants to know."""
