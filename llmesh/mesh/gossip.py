"""Gossip: a change goes at once over the sessions we have; nothing is sent when nothing changes.

The record to a few random peers, a hint to the rest, who get it if it has not come another way
(after Plumtree, Leitao et al. 2007).  What pace or loss keeps back is what Sync is for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

import trio

from llmesh.core.announcement import SignedAnnouncement, author_of
from llmesh.core.directory import Directory, Verdict
from llmesh.core.ids import PeerId
from llmesh.core.peering import Pace
from llmesh.core.query import Get, Hint, News, Record
from llmesh.core.reconcile import Learnt
from llmesh.errors import ValidationFailed
from llmesh.net.directory import ask, lenient, tell
from llmesh.net.sessions import Sessions

__all__ = ["BURST", "PERIOD", "Gossip", "Take"]

log = logging.getLogger(__name__)

Take: TypeAlias = Callable[[Record, PeerId], Learnt | None]
"""Puts a record that a peer gave into the directory; what was learnt, if it was new.

Raises ValidationFailed for a bad one."""

EAGER = 3
"""Peers that get a record unasked."""
SMALL = 1536
"""Bytes of payload up to which a record is sent unasked."""
BURST, PERIOD = 10, 10.0
"""Changes of one provider that are passed on at once, and seconds for each further one."""
BATCH = 32
"""Changes in one message."""
GATHER = 0.01
"""Seconds in which changes are gathered into one message."""
PENDING = 1024
"""Changes that wait for one peer; one that is too slow for more finds the oldest by Sync."""
TELLING = 10.0
_FETCHING = 3.0


@dataclass(slots=True)
class _Feed:
    """What one peer is still to be told: whose change, and whether with the record."""

    pending: dict[PeerId, bool] = field(default_factory=dict)
    filled: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Gossip:
    """Spreads what is new and hears what others spread."""

    def __init__(self, directory: Directory, sessions: Sessions, take: Take, rng: Random) -> None:
        self._directory = directory
        self._sessions = sessions
        self._take = take
        self._rng = rng
        self._feeds: dict[PeerId, _Feed] = {}
        self._fetching: dict[PeerId, trio.Event] = {}
        self._origins = Pace(BURST, PERIOD)
        self._givers = Pace(500, 0.02)
        self._overall = Pace(200, 0.05)

    def spread(self, record: SignedAnnouncement, giver: PeerId | None = None) -> None:
        """Tell every peer but the giver; waits for nobody."""
        if not self._overall.take(None, trio.current_time()):
            return
        author = record.announcement.peer_id
        others = [peer for peer in self._feeds if peer not in (giver, author)]
        small = len(record.payload) <= SMALL
        eager = self._rng.sample(others, min(EAGER, len(others))) if small else []
        for peer in others:
            feed = self._feeds[peer]
            feed.pending[author] = peer in eager
            if len(feed.pending) > PENDING:
                del feed.pending[next(iter(feed.pending))]
            feed.filled.set()

    async def feed(self, peer: PeerId) -> None:
        """Tell a peer what is spread, until `leave`; what fails is left to Sync."""
        feed = self._feeds[peer] = _Feed()
        with feed.scope:
            while True:
                await feed.filled.wait()
                await trio.sleep(GATHER)
                news = self._next_news(feed)
                if (session := self._sessions.get(peer)) is not None and (news.records or news.hints):
                    with lenient(peer, TELLING):
                        await tell(session, news, TELLING)

    def leave(self, peer: PeerId) -> None:
        """The peer is gone."""
        if (feed := self._feeds.pop(peer, None)) is not None:
            feed.scope.cancel()

    async def tell_all(self, record: SignedAnnouncement) -> None:
        """Tell every peer at once and wait until all know it; the caller bounds the wait."""
        news = News(records=(Record.of(record),))
        async with trio.open_nursery() as nursery:
            for session in self._sessions.live():
                nursery.start_soon(self._tell, session.peer_id, news)

    async def hear(self, news: News, giver: PeerId) -> None:
        """Take what a peer spreads and spread it on; Get from it what it only hinted at."""
        for record in news.records:
            self._accept(record, giver)
        self._knows(giver, news.hints)
        if any(self._wants(hint) for hint in news.hints):
            # The record may be on its way from someone else.
            await trio.sleep(self._rng.uniform(0.03, 0.1))
            await self._fetch(news.hints, giver)

    def _next_news(self, feed: _Feed) -> News:
        records, hints = [], []
        for author in list(feed.pending)[:BATCH]:
            eager = feed.pending.pop(author)
            record = self._directory.held(author)
            if record is not None and eager:
                records.append(Record.of(record))
            elif record is not None:
                hints.append(Hint(author, record.announcement.sequence))
        if not feed.pending:
            feed.filled = trio.Event()
        return News(tuple(records), tuple(hints))

    async def _tell(self, peer: PeerId, news: News) -> None:
        if (session := self._sessions.get(peer)) is not None:
            with lenient(peer, TELLING):
                await tell(session, news, TELLING)

    def _accept(self, record: Record, giver: PeerId) -> None:
        now = trio.current_time()
        try:
            author, sequence = author_of(record.payload)
            self._knows(giver, (Hint(author, sequence),))
            if not self._wants(Hint(author, sequence)) or not self._givers.take(giver, now):
                return
            learnt = self._take(record, giver)
            if learnt is not None and self._origins.take(author, now):
                self.spread(learnt.record, giver)
        except ValidationFailed as error:
            log.info("%s passed on a bad announcement: %s", giver, error.message)

    def _wants(self, hint: Hint) -> bool:
        paced = self._origins.wait(hint.peer_id, trio.current_time()) > 0
        return not paced and self._directory.judge(hint.peer_id, hint.sequence) is Verdict.NEW

    def _knows(self, peer: PeerId, hints: Iterable[Hint]) -> None:
        """The peer need not be told what it told us."""
        pending = self._feeds[peer].pending if peer in self._feeds else {}
        for hint in hints:
            if pending and self._directory.judge(hint.peer_id, hint.sequence) is not Verdict.STALE:
                pending.pop(hint.peer_id, None)

    async def _fetch(self, hints: Iterable[Hint], giver: PeerId) -> None:
        """Get what is still wanted, once whoever else gets it now has had its time."""
        for hint in hints:
            if (fetching := self._fetching.get(hint.peer_id)) is not None:
                await fetching.wait()
        wanted = tuple(hint for hint in hints if self._wants(hint))
        session = self._sessions.get(giver)
        if not wanted or session is None:
            return
        done = trio.Event()
        self._fetching.update((hint.peer_id, done) for hint in wanted)
        try:
            with lenient(giver, _FETCHING):
                async with ask(session, Get(wanted), _FETCHING) as answers:
                    async for answer in answers:
                        for record in answer.records:
                            self._accept(record, giver)
        finally:
            for hint in wanted:
                self._fetching.pop(hint.peer_id, None)
            done.set()
