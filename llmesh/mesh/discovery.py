"""Discovery: finding who offers what, in three layers.

The directory protocol on the sessions is the backbone (`mesh.sync`), gossip carries changes at once
(`mesh.gossip`), the hash table is a way in (`mesh.entrypoints`), and `mesh.peers` keeps the sessions.
This module opens them and answers for all of them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random, SystemRandom

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer, SignedAnnouncement
from llmesh.core.directory import Bounds, Directory
from llmesh.core.ids import PeerId
from llmesh.core.meter import Meter
from llmesh.core.peering import Pace
from llmesh.core.query import Answer, News, Parting, Query, Record, Search
from llmesh.core.reconcile import Learnt, answer, take
from llmesh.core.reference import ModelRef
from llmesh.errors import NodeBusy, ValidationFailed
from llmesh.mesh.entrypoints import EntryPoints
from llmesh.mesh.events import Events, PeerChange, PeerUpdated
from llmesh.mesh.gossip import Gossip
from llmesh.mesh.peers import Limits, Peers
from llmesh.mesh.sync import Syncing
from llmesh.mesh.witness import offer_changes
from llmesh.net.call import Handler
from llmesh.net.directory import PROTOCOL, ask, handler, lenient
from llmesh.net.host import Host, PeerAddress
from llmesh.net.metered import MeteredDht
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions, open_sessions

__all__ = ["Discovery", "DiscoverySettings", "open_discovery"]

EXPIRING = 60.0
SEARCHING = 2.0
"""Seconds for one Search."""
ASKED = 3
"""Peers asked at once."""
GROUPS = 4
"""Groups of entry points asked one after the other."""
DIALLING = 5.0


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Whom to know first, how much to hold, how many sessions to keep, where to tell of peers and offers.

    `clock` is seconds since 1970; `meter` counts bytes and calls of the hash table.
    """

    bootstrap: Sequence[PeerAddress] = ()
    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time
    rng: Random = field(default_factory=SystemRandom)
    events: Events = field(default_factory=Events)
    meter: Meter = field(default_factory=Meter)


class Discovery:
    """What this node knows of the mesh; made by `open_discovery`."""

    def __init__(
        self, host: Host, sessions: Sessions, settings: DiscoverySettings, nursery: trio.Nursery
    ) -> None:
        own, clock, rng = host.peer_id, settings.clock, settings.rng
        self.sessions = sessions
        self.directory = Directory(own, rng.getrandbits(63), settings.bounds)
        self.clock = clock
        self._own = own
        self._events = settings.events
        self._rng = rng
        self._nursery = nursery
        self._gossip = Gossip(self.directory, sessions, self._take, rng)
        self._sync = Syncing(self.directory, sessions, self._gossip, self._take, clock, rng)
        self._peers = Peers(own, self.directory, sessions, settings.limits, clock, rng)
        self._entry_points = EntryPoints(own, MeteredDht(host.dht, settings.meter), clock, rng)
        self._asking = Pace(100, 0.1)
        self._seeking = Pace(1, 30.0)

    # --- what this node asks ----------------------------------------------------------------

    def lookup(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        """Every valid offer that the reference names, as known here and now; our own among them."""
        return self.directory.lookup(ref, self.clock())

    def search(self, part: str, max_fee: Amount | None, limit: int) -> list[tuple[Offer, Announcement]]:
        """Valid offers by part of a name and price, as known here and now, of peers not known to be down."""
        found = self.directory.search(part, max_fee, self.directory.bounds.offers, self.clock())
        return [pair for pair in found if not self.is_down(pair[1].peer_id)][:limit]

    def announcements(self) -> list[Announcement]:
        """What every node that offers something says of itself, as known here and now; ours too."""
        return list(self.directory.providers(self.clock()))

    def is_down(self, peer: PeerId) -> bool:
        """Whether the peer was lost and has not been heard of since."""
        return self._peers.is_down(peer)

    async def find(self, ref: ModelRef) -> None:
        """See to it that `lookup` knows what the mesh knows of the reference, as far as can be asked.

        Asks up to six connected peers.  The hash table, which is slow, is waited for only by a node
        that does not know its mesh yet; otherwise it is asked in the background.  Finding nothing
        proves nothing.  Never raises; safe to cancel.
        """
        live = self.sessions.live()
        asked = self._rng.sample(live, min(2 * ASKED, len(live)))
        for group in (asked[:ASKED], asked[ASKED:]):
            if not self.lookup(ref):
                await self._search_at(group, ref)
        if self.lookup(ref) or not self._seeking.take(str(ref), trio.current_time()):
            return
        if self._sync.settled:
            self._nursery.start_soon(self._seek, ref)
        else:
            await self._seek(ref)

    # --- what this node says ----------------------------------------------------------------

    def met(self, contact: PeerAddress) -> None:
        """Someone to dial, found on the local network."""
        self._peers.met(contact)

    def publish(self, record: SignedAnnouncement) -> None:
        """Make our own announcement known; waits for nobody.

        A mere renewal is left to Sync: it has minutes, and costs each node its bytes once.
        """
        before = self.directory.held(self._own)
        self._keep(record, before)
        self._entry_points.publish(record)
        if before is None or not record.announcement.renews(before.announcement):
            self._gossip.spread(record)

    async def withdraw(self, record: SignedAnnouncement) -> None:
        """Tell every peer, then the hash table, that we offer nothing more; the caller bounds the wait."""
        self._keep(record, self.directory.held(self._own))
        self._entry_points.publish(record)
        await self._gossip.tell_all(record)
        await self._entry_points.store()

    # --- what peers and sessions say ----------------------------------------------------------

    def changed(self, session: Session, opened: bool) -> None:
        """A peer has come or gone."""
        peer = session.peer_id
        self._events.tell(PeerUpdated(peer, PeerChange.UP if opened else PeerChange.DOWN))
        if opened:
            self.directory.in_use.add(peer)
            self._peers.opened(peer)
            self._sync.opened(session)
            self._nursery.start_soon(self._gossip.feed, peer)
        else:
            self.directory.in_use.discard(peer)
            self._gossip.leave(peer)
            self._peers.lost(peer)

    async def serve(self, query: Query, peer: PeerId) -> Iterable[Answer]:
        """Answer a peer's query.  Raises NodeBusy for a peer that asks too often."""
        if not self._asking.take(peer, trio.current_time()):
            raise NodeBusy("You ask too often.", retry_after=1.0)
        match query:
            case News():
                await self._gossip.hear(query, peer)
                return ()
            case Parting():
                self._peers.agree_to_part(peer)
                return ()
            case _:
                return answer(self.directory, query, peer, self.clock())

    async def run(self) -> None:
        """What goes on all the time."""
        async with trio.open_nursery() as nursery:
            for task in (self._peers.run, self._sync.run, self._entry_points.run, self._expire):
                nursery.start_soon(task)

    def _take(self, record: Record, giver: PeerId) -> Learnt | None:
        learnt = take(self.directory, record, giver, self.clock())
        if learnt is not None:
            self._peers.renewed(learnt.record.announcement.peer_id)
            self._tell(learnt.record.announcement, learnt.before)
        return learnt

    def _keep(self, record: SignedAnnouncement, before: SignedAnnouncement | None) -> None:
        """Our own announcement."""
        self.directory.add(record, self.clock())
        self._tell(record.announcement, before)

    def _tell(self, after: Announcement, before: SignedAnnouncement | None) -> None:
        if before is None and after.peer_id != self._own:
            self._events.tell(PeerUpdated(after.peer_id, PeerChange.NEW))
        offered = before.announcement.offers if before is not None else ()
        for change in offer_changes(after.peer_id, offered, after.offers):
            self._events.tell(change)

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRING)
            for over in self.directory.expire(self.clock()):
                for change in offer_changes(over.peer_id, over.offers, ()):
                    self._events.tell(change)

    async def _seek(self, ref: ModelRef) -> None:
        """Ask entry points of the hash table, a few at a time, until one knows."""
        contacts = await self._entry_points.find(ref)
        for start in range(0, min(len(contacts), GROUPS * ASKED), ASKED):
            async with trio.open_nursery() as nursery:
                for contact in contacts[start : start + ASKED]:
                    nursery.start_soon(self._search_with, contact, ref)
            if self.lookup(ref):
                return

    async def _search_with(self, contact: PeerAddress, ref: ModelRef) -> None:
        with lenient(contact.peer_id, DIALLING):
            session = await self.sessions.to(contact.peer_id, contact.addresses)
            await self._search(session, ref)

    async def _search_at(self, sessions: Sequence[Session], ref: ModelRef) -> None:
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(self._search, session, ref)

    async def _search(self, session: Session, ref: ModelRef) -> None:
        query = Search(model_id=ref.id) if ref.id else Search(name=ref.name)
        with lenient(session.peer_id, SEARCHING):
            async with ask(session, query, SEARCHING) as answers:
                async for each in answers:
                    for record in each.records:
                        with suppress(ValidationFailed):  # forged or expired: as good as no answer
                            self._take(record, session.peer_id)


@asynccontextmanager
async def open_discovery(
    host: Host, handlers: Mapping[str, Handler], settings: DiscoverySettings | None = None
) -> AsyncIterator[Discovery]:
    """Open the sessions of a node, serving `handlers` and the directory protocol, and keep them.

    Leaving closes them all; announce and withdraw through `mesh.announcer`.
    """
    settings = settings or DiscoverySettings()

    # Nothing arrives before the first checkpoint below, when discovery is there.
    def changed(session: Session, opened: bool) -> None:
        discovery.changed(session, opened)

    async def serve(query: Query, peer: PeerId) -> Iterable[Answer]:
        return await discovery.serve(query, peer)

    async with trio.open_nursery() as nursery:
        known = {**handlers, PROTOCOL: handler(serve)}
        async with open_sessions(host, known, changed, settings.meter) as sessions:
            discovery = Discovery(host, sessions, settings, nursery)
            for contact in settings.bootstrap:
                discovery.met(contact)
            nursery.start_soon(discovery.run)
            yield discovery
        nursery.cancel_scope.cancel()
