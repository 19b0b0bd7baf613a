"""Peers: which sessions this node keeps, and who is down.

6 to 12 lasting sessions, with whoever is known from bootstrap, the local network or the directory;
what nobody uses beyond that is closed, by agreement.  A provider whose session is lost is down until
there is a session with it again; it is redialled at once, then every few seconds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import trio

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

TICK, REST = 1.0, 10.0
"""Seconds between looks, while someone is sought and when all is well."""
DIALS = 8
"""Dials under way at once."""
UNUSED = 60.0
"""Seconds without a call, as seen at each tick, after which a session may be closed."""
PARTING = 3.0
CONTACTS = 256
WATCHED = 256
TRIED = 1024
"""Peers whose last failure or parting is remembered."""
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
        self._down: set[PeerId] = set()
        self._parted: dict[PeerId, float] = {}
        self._dialling: set[PeerId] = set()
        self._busy_at: dict[PeerId, float] = {}
        self._spare = 0
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
        self._down.discard(peer)
        for table in (self._parted, self._watched, self._tries):
            table.pop(peer, None)

    def lost(self, peer: PeerId) -> None:
        """The session with the peer is over."""
        self._busy_at.pop(peer, None)
        if trio.current_time() - self._parted.pop(peer, -math.inf) > 2 * PARTING:
            self.unreachable(peer)
        self._wake.set()

    def unreachable(self, peer: PeerId) -> None:
        """The peer could not be reached: a provider is down until it shows itself again."""
        if self._sessions.get(peer) is not None or not self._offers(peer):
            return
        self._down.add(peer)
        self._watched.setdefault(peer, Backoff(1.0, 5.0))
        if len(self._watched) > WATCHED:
            forgotten = next(iter(self._watched))
            del self._watched[forgotten]
            self._down.discard(forgotten)
        self._wake.set()

    def renewed(self, peer: PeerId) -> None:
        """The peer has announced something newer than what we knew: if it was lost, try it now.

        The news may be older than the loss and only late, so it alone does not bring the peer back.
        """
        if peer in self._down:
            self._watched[peer] = Backoff(1.0, 5.0)
            self._wake.set()
        elif self._tries.pop(peer, None) is not None:
            self._wake.set()

    def agree_to_part(self, peer: PeerId) -> None:
        """The peer wants to close our session.  Raises NodeBusy where we want to keep it."""
        if trio.current_time() - self._busy_at.get(peer, 0.0) < UNUSED:
            raise NodeBusy("This session is in use.", retry_after=UNUSED)
        if len(self._sessions.live()) <= self._limits.low:
            self._spare = 1  # by the time it asks again, there is another in its place
            self._wake.set()
            raise NodeBusy("This session is one of few.", retry_after=UNUSED)
        self._spare = 0
        self._parted[peer] = trio.current_time()

    async def run(self) -> None:
        """Dial and close as needed."""
        async with trio.open_nursery() as nursery:
            while True:
                live = self._sessions.live()
                self._observe(live)
                for peer in [*self._wanted(), *self._missing(len(live))][: DIALS - len(self._dialling)]:
                    self._dialling.add(peer)
                    nursery.start_soon(self._dial, peer)
                for session in self._superfluous(live):
                    nursery.start_soon(self._part, session)
                content = len(live) >= self._limits.low and not self._watched
                with trio.move_on_after(REST if content else TICK):
                    await self._wake.wait()
                self._wake = trio.Event()

    def _offers(self, peer: PeerId) -> bool:
        record = self._directory.get(peer, self._clock())
        return record is not None and bool(record.announcement.offers)

    def _observe(self, live: Sequence[Session]) -> None:
        now = trio.current_time()
        for session in live:
            if not session.idle:
                self._busy_at[session.peer_id] = now

    def _wanted(self) -> Iterator[PeerId]:
        """Lost providers whose turn it is."""
        for peer in [peer for peer in self._watched if not self._offers(peer)]:
            del self._watched[peer]  # it has withdrawn or expired
            self._down.discard(peer)
        now = trio.current_time()
        for peer, backoff in self._watched.items():
            if backoff.next_at <= now and peer not in self._dialling:
                yield peer

    def _missing(self, live: int) -> list[PeerId]:
        """Whom to dial because there are too few sessions."""
        count = live + len(self._dialling)
        if count >= self._limits.low + self._spare:
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
        if not live:
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
            self._try_later(peer, self._tries.get(peer) or Backoff(1.0, longest))
            self._tries[peer].failed(now)
            return
        watched.failed(now)
        watched.longest = 5.0 if watched.failures < IMPATIENT else 300.0
        self.unreachable(peer)

    def _try_later(self, peer: PeerId, backoff: Backoff) -> None:
        self._tries.pop(peer, None)
        self._tries[peer] = backoff
        if len(self._tries) > TRIED:
            del self._tries[next(iter(self._tries))]

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """The announced ones first: a contact may be older."""
        record = self._directory.get(peer, self._clock())
        announced = record.announcement.addresses if record is not None else ()
        contact = self._contacts.get(peer)
        return tuple(dict.fromkeys((*announced, *(contact.addresses if contact else ()))))

    def _superfluous(self, live: Sequence[Session]) -> list[Session]:
        """Unused sessions above the limit, longest unused first."""
        excess = len(live) - self._limits.high
        if excess <= 0:
            return []
        now = trio.current_time()
        unused = [
            (self._busy_at.get(session.peer_id, 0.0), session.peer_id, session)
            for session in live
            if session.idle and self._partings.wait(session.peer_id, now) == 0
        ]
        return [session for since, _, session in sorted(unused) if now - since >= UNUSED][:excess]

    async def _part(self, session: Session) -> None:
        """Close a session if its peer does not need it either."""
        self._partings.take(session.peer_id, trio.current_time())
        with lenient(session.peer_id, PARTING):
            await tell(session, Parting(), PARTING)
            if session.idle:
                now = self._parted[session.peer_id] = trio.current_time()
                self._try_later(session.peer_id, Backoff(1.0, 300.0, next_at=now + UNUSED))
                session.close()
