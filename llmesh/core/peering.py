"""Whom to talk to and how often: rules over peers, without tasks.  `now` is any steady clock, in seconds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from random import Random

from llmesh.core.directory import Cursor
from llmesh.core.ids import PeerId

__all__ = ["Acquaintance", "Backoff", "Pace", "Rota"]

MUTE_AFTER = 2
"""Empty answers in a row, while others had something, after which a peer is left alone for a while."""
REST = 120.0
SPREADING = 60.0
"""Seconds that news may take to reach everyone honest."""
_REMEMBERED = 1024


class Pace:
    """At most `burst` at once and then one every `period` seconds, for each key.

    The generic cell rate algorithm (ITU-T I.371): one number a key, none for a key at rest.
    """

    def __init__(self, burst: int, period: float) -> None:
        self._period = period
        self._slack = (burst - 1) * period
        self._due: dict[Hashable, float] = {}
        self._crowded = _REMEMBERED

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until the key may go again, 0 if it may now."""
        return max(0.0, self._due.get(key, now) - self._slack - now)

    def take(self, key: Hashable, now: float) -> bool:
        """Go, if the key may."""
        if self.wait(key, now) > 0:
            return False
        if len(self._due) >= self._crowded:
            self._due = {key: due for key, due in self._due.items() if due > now}
            self._crowded = max(_REMEMBERED, 2 * len(self._due))  # not to look through them each time
        self._due[key] = max(self._due.get(key, now), now) + self._period
        return True


@dataclass(slots=True)
class Backoff:
    """Doubling pauses between tries, from `first` to `longest` seconds."""

    first: float
    longest: float
    failures: int = 0
    next_at: float = -math.inf

    def failed(self, now: float) -> None:
        """Wait longer each time."""
        self.next_at = now + min(self.first * 2 ** min(self.failures, 30), self.longest)
        self.failures += 1


@dataclass(slots=True)
class Acquaintance:
    """Where we left off with a peer: our place in its directory, its place in ours, its manners."""

    theirs: Cursor | None = None
    ours: Cursor | None = None
    asked_at: float = -math.inf
    empty: int = 0
    resting_until: float = -math.inf


@dataclass
class Rota:
    """Whose turn it is to be compared with: strangers first, then anyone, but for the mute."""

    rng: Random
    _known: dict[PeerId, Acquaintance] = field(default_factory=dict)

    def acquaintance(self, peer: PeerId) -> Acquaintance:
        """What is remembered of a peer, for as long as we remember it."""
        if peer not in self._known and len(self._known) >= _REMEMBERED:
            del self._known[min(self._known, key=lambda known: self._known[known].asked_at)]
        return self._known.setdefault(peer, Acquaintance())

    def forget(self, peer: PeerId) -> None:
        """Take the peer for a stranger."""
        self._known.pop(peer, None)

    def next(self, live: Iterable[PeerId], now: float) -> PeerId | None:
        """Whom of the live peers to ask now; the mute only if there is nobody else."""
        peers = list(live)
        ready = [peer for peer in peers if self.acquaintance(peer).resting_until <= now] or peers
        strangers = [peer for peer in ready if self.acquaintance(peer).asked_at == -math.inf]
        return self.rng.choice(strangers or ready) if ready else None

    def asked(self, peer: PeerId, gave: int, oldest: float, now: float) -> None:
        """The peer answered with `gave` records that we lacked, the oldest issued at `oldest`.

        Whoever was asked well after that and gave nothing, more than once in a row, either knows
        nobody or hides what it knows: it rests.  Its own calls are served all the same.
        """
        known = self.acquaintance(peer)
        known.asked_at = now
        known.empty = 0 if gave else known.empty + 1
        for other in self._known.values() if gave else ():
            if other.empty >= MUTE_AFTER and other.asked_at > oldest + SPREADING:
                other.resting_until, other.empty = now + REST, 0
