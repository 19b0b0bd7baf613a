"""Sync: directories are compared in pairs, so that what gossip missed is found all the same.

A peer that this node dialled is compared with at once, then one random peer every 30 s, every 5 s
while comparisons still bring something.  One comparison at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import trio

from llmesh.core.directory import Directory
from llmesh.core.ids import PeerId
from llmesh.core.peering import Rota
from llmesh.core.query import Answer, Sync
from llmesh.core.reconcile import changes_to_name, news_of
from llmesh.errors import ValidationFailed
from llmesh.mesh.gossip import Gossip, Take
from llmesh.net.directory import ask, lenient, tell
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions

__all__ = ["Syncing"]

PERIOD = 30.0
FRESH_PERIOD = 5.0
QUIET = 3
"""Comparisons in a row that bring nothing, after which this node takes itself for settled."""
SILENCE = 3.0
"""Seconds without a message after which a peer is given up."""
COMPARING = 120.0
"""Seconds for one comparison, however steadily the peer goes on; the next one goes on from there."""
MAX_SIZE = 4 << 20
"""Bytes of records taken in one comparison."""


@dataclass(slots=True)
class _Haul:
    """What one comparison brought: news, when the oldest was issued, bytes, what they want of what we named.

    Renewals are no news: they spread by comparing, so nobody is mute for not having them yet.
    """

    named: frozenset[bytes]
    new: int = 0
    oldest: float = math.inf
    size: int = 0
    wanted: dict[bytes, None] = field(default_factory=dict)


class Syncing:
    """Keeps this node's directory the same as its peers'."""

    def __init__(
        self,
        directory: Directory,
        sessions: Sessions,
        gossip: Gossip,
        take: Take,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._directory = directory
        self._sessions = sessions
        self._gossip = gossip
        self._take = take
        self._clock = clock
        self._rng = rng
        self._rota = Rota(rng)
        self._newcomers: dict[PeerId, None] = {}
        self._wake = trio.Event()
        self._quiet = 0

    @property
    def settled(self) -> bool:
        """Whether the last comparisons brought nothing: we know what our peers know."""
        return self._quiet >= QUIET

    def opened(self, session: Session) -> None:
        """A session has opened; whoever dialled compares."""
        if session.initiator:
            self._newcomers[session.peer_id] = None
            self._wake.set()

    async def run(self) -> None:
        """Compare with newcomers as they come and with one peer a period."""
        while True:
            with trio.move_on_after(self._period()):
                await self._wake.wait()
            self._wake = trio.Event()
            for peer in self._turn():
                if (session := self._sessions.get(peer)) is not None:
                    await self.compare(session)

    async def compare(self, session: Session) -> int:
        """Push and pull what the other lacks; how much of it was news to us.

        Never raises: a peer that fails or is silent has given nothing.
        """
        peer = session.peer_id
        acquaintance = self._rota.acquaintance(peer)
        theirs, ours = acquaintance.theirs, self._directory.head
        known = changes_to_name(self._directory, acquaintance.ours, self._clock())
        haul = _Haul(frozenset(known))
        with lenient(peer, COMPARING), trio.move_on_after(SILENCE) as scope:
            async with ask(session, Sync(theirs, known), 10 * SILENCE) as answers:
                async for answer in answers:
                    scope.deadline = trio.current_time() + SILENCE
                    self._take_in(answer, peer, haul)
                    acquaintance.theirs = answer.cursor or acquaintance.theirs
                    if haul.size > MAX_SIZE or not answer.records:  # without any it is the last
                        break
            for news in news_of(self._directory, haul.wanted):
                scope.deadline = trio.current_time() + SILENCE
                await tell(session, news, SILENCE)
            acquaintance.ours = ours
            self._quiet = 0 if haul.new else self._quiet + 1
        self._rota.asked(peer, haul.new, haul.oldest, self._clock())
        if (
            theirs is not None
            and acquaintance.theirs is not None
            and theirs.start != acquaintance.theirs.start
        ):
            # It has started anew and knows nothing of what we named to it before.
            self._rota.forget(peer)
        return haul.new

    def _period(self) -> float:
        return (PERIOD if self.settled else FRESH_PERIOD) * self._rng.uniform(0.75, 1.25)

    def _turn(self) -> list[PeerId]:
        """Whom to compare with now."""
        if not self._newcomers:
            live = [session.peer_id for session in self._sessions.live()]
            peer = self._rota.next(live, self._clock())
            return [] if peer is None else [peer]
        newcomers, self._newcomers = list(self._newcomers), {}
        return newcomers

    def _take_in(self, answer: Answer, peer: PeerId, haul: _Haul) -> None:
        haul.wanted.update((mark, None) for mark in answer.wanted if mark in haul.named)
        for record in answer.records:
            haul.size += len(record.payload)
            with suppress(ValidationFailed):  # forged or expired: nothing given
                learnt = self._take(record, peer)
                if learnt is not None and not learnt.renewal:
                    haul.new += 1
                    haul.oldest = min(haul.oldest, learnt.record.announcement.issued_at)
                    if self.settled:  # then our other peers lack it too: two parts of the mesh have met
                        self._gossip.spread(learnt.record, peer)
