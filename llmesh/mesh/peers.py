"""Peers: which sessions this node keeps, and who is down.

6 to 12 lasting sessions, with whoever is known from bootstrap, the local network or the directory;
what nobody uses beyond that is closed, by agreement.  A provider whose session is lost is down until
it is dialled again, dials us, or announces anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import trio

from llmesh.core.announcement import Announcement
from llmesh.core.directory import Directory
from llmesh.core.ids import PeerId
from llmesh.core.peering import Backoff, Pace
from llmesh.core.query import Parting
from llmesh.errors import MeshError, NodeBusy
from llmesh.net.directory import lenient, tell
from llmesh.net.host import PeerAddress
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions

__all__ = ["Limits", "Peers"]

log = logging.getLogger(__name__)

TICK = 1.0
DIALS = 8
"""Dials under way at once."""
UNUSED = 60.0
"""Seconds without a call, as seen at each tick, after which a session may be closed."""
PARTING = 3.0
CONTACTS = 256
WATCHED = 256
IMPATIENT = 30
"""Tries at a lost provider, at most 5 s apart, before they become rare."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Lasting sessions: below `low` more are sought, up to `target`; above `high` unused ones are closed."""

    low: int = 6
    target: int = 8
    high: int = 12


class Peers:
    """Keeps the sessions; `opened`, `lost`, `renewed` and `met` tell it what happens."""

    def __init__(
        self,
        own: PeerId,
        directory: Directory,
        sessions: Sessions,
        limits: Limits,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._own = own
        self._directory = directory
        self._sessions = sessions
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._contacts: dict[PeerId, PeerAddress] = {}
        self._tries: dict[PeerId, Backoff] = {}
        self._watched: dict[PeerId, Backoff] = {}
        self._down: dict[PeerId, int] = {}
        self._parted: dict[PeerId, float] = {}
        self._dialling: set[PeerId] = set()
        self._busy_at: dict[PeerId, float] = {}
        self._partings = Pace(1, UNUSED)
        self._wake = trio.Event()

    def is_down(self, peer: PeerId) -> bool:
        """Whether the peer was lost and has not been heard of since."""
        return peer in self._down

    def met(self, contact: PeerAddress) -> None:
        """Someone to dial, from a bootstrap list or the local network."""
        if contact.peer_id == self._own:
            return
        self._contacts[contact.peer_id] = contact
        if len(self._contacts) > CONTACTS:
            del self._contacts[next(iter(self._contacts))]
        self._tries.pop(contact.peer_id, None)
        self._wake.set()

    def opened(self, peer: PeerId) -> None:
        """A session with the peer is there."""
        self._busy_at[peer] = trio.current_time()
        for table in (self._parted, self._down, self._watched, self._tries):
            table.pop(peer, None)

    def lost(self, peer: PeerId) -> None:
        """The session with the peer is over."""
        self._busy_at.pop(peer, None)
        if trio.current_time() - self._parted.pop(peer, -math.inf) > 2 * PARTING:
            self.unreachable(peer)
        self._wake.set()

    def unreachable(self, peer: PeerId) -> None:
        """The peer could not be reached: a provider is down until it shows itself again."""
        announcement = self._offering(peer)
        if announcement is None or self._sessions.get(peer) is not None:
            return
        self._down[peer] = announcement.sequence
        self._watched.setdefault(peer, Backoff(1.0, 5.0))
        if len(self._watched) > WATCHED:
            forgotten = next(iter(self._watched))
            del self._watched[forgotten]
            self._down.pop(forgotten, None)
        self._wake.set()

    def renewed(self, announcement: Announcement) -> None:
        """The peer has announced something newer than what we knew."""
        if announcement.sequence > self._down.get(announcement.peer_id, announcement.sequence):
            del self._down[announcement.peer_id]
            self._watched[announcement.peer_id] = Backoff(1.0, 5.0)
        self._tries.pop(announcement.peer_id, None)
        self._wake.set()

    def agree_to_part(self, peer: PeerId) -> None:
        """The peer wants to close our session.  Raises NodeBusy where we want to keep it."""
        recently = trio.current_time() - self._busy_at.get(peer, 0.0) < UNUSED
        if recently or len(self._sessions.live()) <= self._limits.low:
            raise NodeBusy("This session is wanted.", retry_after=UNUSED)
        self._parted[peer] = trio.current_time()

    async def run(self) -> None:
        """Dial and close as needed."""
        async with trio.open_nursery() as nursery:
            while True:
                self._observe()
                for peer in [*self._wanted(), *self._missing()][: DIALS - len(self._dialling)]:
                    self._dialling.add(peer)
                    nursery.start_soon(self._dial, peer)
                for session in self._superfluous():
                    nursery.start_soon(self._part, session)
                with trio.move_on_after(TICK):
                    await self._wake.wait()
                self._wake = trio.Event()

    def _offering(self, peer: PeerId) -> Announcement | None:
        record = self._directory.get(peer, self._clock())
        return record.announcement if record is not None and record.announcement.offers else None

    def _observe(self) -> None:
        now = trio.current_time()
        for session in self._sessions.live():
            if not session.idle:
                self._busy_at[session.peer_id] = now

    def _wanted(self) -> Iterator[PeerId]:
        """Lost providers whose turn it is."""
        for peer in [peer for peer in self._watched if self._offering(peer) is None]:
            del self._watched[peer]  # it has withdrawn or expired
            self._down.pop(peer, None)
        now = trio.current_time()
        for peer, backoff in self._watched.items():
            if backoff.next_at <= now and peer not in self._dialling:
                yield peer

    def _missing(self) -> list[PeerId]:
        """Whom to dial because there are too few sessions."""
        count = len(self._sessions.live()) + len(self._dialling)
        if count >= self._limits.low:
            return []
        now = trio.current_time()
        known = {*self._contacts, *(a.peer_id for a in self._directory.providers(self._clock()))}
        apart = self._dialling | self._watched.keys() | {self._own}
        ready = [
            peer
            for peer in sorted(known - apart)
            if self._sessions.get(peer) is None
            and (peer not in self._tries or self._tries[peer].next_at <= now)
        ]
        self._rng.shuffle(ready)
        if not self._sessions.live():
            ready.sort(key=lambda peer: peer not in self._contacts)
        return ready[: self._limits.target - count]

    async def _dial(self, peer: PeerId) -> None:
        try:
            await self._sessions.to(peer, self._addresses(peer))
        except MeshError as error:
            log.debug("%s", error.message)
            self._failed(peer)
        finally:
            self._dialling.discard(peer)
            self._wake.set()

    def _failed(self, peer: PeerId) -> None:
        now = trio.current_time()
        watched = self._watched.get(peer)
        if watched is None:
            longest = 30.0 if peer in self._contacts else 300.0
            self._tries.setdefault(peer, Backoff(1.0, longest)).failed(now)
            return
        watched.failed(now)
        watched.longest = 5.0 if watched.failures < IMPATIENT else 300.0
        self.unreachable(peer)

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """The announced ones first: a contact may be older."""
        record = self._directory.get(peer, self._clock())
        announced = record.announcement.addresses if record is not None else ()
        contact = self._contacts.get(peer)
        return tuple(dict.fromkeys((*announced, *(contact.addresses if contact else ()))))

    def _superfluous(self) -> list[Session]:
        """Unused sessions above the limit, longest unused first."""
        live = self._sessions.live()
        now = trio.current_time()
        unused = [
            session
            for session in live
            if session.idle and now - self._busy_at.get(session.peer_id, 0.0) >= UNUSED
        ]
        unused.sort(key=lambda session: self._busy_at.get(session.peer_id, 0.0))
        asked = [s for s in unused if self._partings.wait(s.peer_id, now) == 0]
        return asked[: max(0, len(live) - self._limits.high)]

    async def _part(self, session: Session) -> None:
        """Close a session if its peer does not need it either."""
        self._partings.take(session.peer_id, trio.current_time())
        with lenient(session.peer_id, PARTING):
            await tell(session, Parting(), PARTING)
            if session.idle:
                now = self._parted[session.peer_id] = trio.current_time()
                self._tries[session.peer_id] = Backoff(1.0, 300.0, next_at=now + UNUSED)
                session.close()
