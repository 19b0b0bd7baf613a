"""Reputation: what this node has measured of its peers itself; nobody's word counts here.

Latency and throughput are per peer and model, trust per peer.  Memory is bounded: who was not
asked for longest is forgotten first, and forgotten means good.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import trio

from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Usage
from llmesh.core.ranking import Candidate, Measured, Trust

__all__ = ["Down", "Reputation", "ReputationSettings"]

Down: TypeAlias = Callable[[PeerId], bool]
"""Whether discovery takes a peer for dead at present."""


@dataclass(frozen=True, slots=True)
class ReputationSettings:
    """Seconds of standing back: doubled with each failure in a row, from the first to the longest.

    `failure` and `longest_failure` are for what may happen to anyone, `disgrace` and
    `longest_disgrace` for answers that break the protocol.  `absence` and `longest_absence` are for
    how long a peer that never answered counts as absent.  `remembered` bounds both tables.
    """

    failure: float = 1.0
    longest_failure: float = 8.0
    disgrace: float = 60.0
    longest_disgrace: float = 3600.0
    absence: float = 60.0
    longest_absence: float = 3600.0
    remembered: int = 4096


_DEFAULT = ReputationSettings()
_SMOOTHING = 0.3


@dataclass(slots=True)
class _Standing:
    """Failures and bad answers in a row, and until when (trio's clock) each keeps the peer back."""

    proven: bool = False  # it has answered once
    failures: int = 0
    failing_until: float = 0.0
    absent_until: float = 0.0
    disgraces: int = 0
    disgraced_until: float = 0.0
    load: float = 0.0


@dataclass(slots=True)
class _Speed:
    """Moving averages (EWMA) of the answers of one peer with one model."""

    latency: float
    throughput: float = 0.0


class Reputation:
    """Own measurements of peers; call the verbs as attempts go, `measured` to rank."""

    def __init__(self, down: Down, settings: ReputationSettings = _DEFAULT) -> None:
        self._down = down
        self._settings = settings
        self._standings: OrderedDict[PeerId, _Standing] = OrderedDict()
        self._speeds: OrderedDict[tuple[PeerId, ModelId], _Speed] = OrderedDict()
        self._under_way: Counter[PeerId] = Counter()

    def measured(self, candidate: Candidate) -> Measured:
        """What is known of a candidate at this moment."""
        peer = candidate.peer_id
        standing = self._standings.get(peer)
        speed = self._speeds.get((peer, candidate.offer.model_id))
        return Measured(
            trust=self._trust(peer, standing),
            latency=speed.latency if speed else None,
            throughput=speed.throughput if speed else 0.0,
            load=standing.load if standing else 0.0,
            under_way=self._under_way[peer],
        )

    def trust(self, peer: PeerId) -> Trust:
        """How the peer stands at this moment."""
        return self._trust(peer, self._standings.get(peer))

    def absent(self, peer: PeerId) -> bool:
        """Whether the peer is no reason to take a name for its model: it is down or failed lately.

        A busy peer is not absent.  Who never answered is absent for longer after a failure, so that
        offers of nobody do not cost every consumer a request each few seconds.
        """
        standing = self._standings.get(peer)
        failed = standing is not None and standing.absent_until > trio.current_time()
        return failed or self._trust(peer, standing) >= Trust.DOWN

    @contextmanager
    def asking(self, peer: PeerId) -> Iterator[None]:
        """Count an attempt as under way while the block runs."""
        self._under_way[peer] += 1
        try:
            yield
        finally:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]

    def accepted(self, peer: PeerId, load: float) -> None:
        """The peer took an attempt, at this share of its capacity."""
        self._standing(peer).load = load

    def answered(self, peer: PeerId, model: ModelId, seconds: float, usage: Usage) -> None:
        """The peer answered well; its failures are forgiven, a past disgrace halves."""
        standing = self._standing(peer)
        standing.proven, standing.failures = True, 0
        standing.failing_until = standing.absent_until = 0.0
        standing.disgraces //= 2
        self._sample(peer, model, seconds, usage.output_tokens / max(seconds, 1e-6))

    def late(self, peer: PeerId, model: ModelId, seconds: float) -> None:
        """The caller's time ran out after so many seconds of waiting for the peer."""
        speed = self._speeds.get((peer, model))
        if speed is None or seconds > speed.latency:
            self._sample(peer, model, seconds, 0.0)

    def busy(self, peer: PeerId, retry_after: float | None) -> None:
        """The peer was full; it stands back for as long as it asked, within reason."""
        standing = self._standing(peer)
        standing.load = 1.0
        pause = min(max(retry_after or 0.0, 0.0), self._settings.longest_failure)
        standing.failing_until = max(standing.failing_until, trio.current_time() + pause)

    def failed(self, peer: PeerId) -> None:
        """The peer could not be reached, broke off, or its model failed."""
        standing = self._standing(peer)
        now, settings = trio.current_time(), self._settings
        pause = _doubled(settings.failure, standing.failures, settings.longest_failure)
        absence = _doubled(settings.absence, standing.failures, settings.longest_absence)
        standing.failures += 1
        standing.failing_until = now + pause
        standing.absent_until = now + (pause if standing.proven else absence)

    def disgraced(self, peer: PeerId) -> None:
        """The peer's answer broke the protocol."""
        standing = self._standing(peer)
        pause = _doubled(self._settings.disgrace, standing.disgraces, self._settings.longest_disgrace)
        standing.disgraces += 1
        standing.disgraced_until = trio.current_time() + pause

    def _trust(self, peer: PeerId, standing: _Standing | None) -> Trust:
        now = trio.current_time()
        if standing and standing.disgraced_until > now:
            return Trust.DISGRACED
        if self._down(peer):
            return Trust.DOWN
        return Trust.FAILING if standing and standing.failing_until > now else Trust.GOOD

    def _standing(self, peer: PeerId) -> _Standing:
        standing = self._standings.setdefault(peer, _Standing())
        self._standings.move_to_end(peer)
        if len(self._standings) > self._settings.remembered:
            self._standings.popitem(last=False)
        return standing

    def _sample(self, peer: PeerId, model: ModelId, seconds: float, throughput: float) -> None:
        speed = self._speeds.setdefault((peer, model), _Speed(seconds, throughput))
        speed.latency += _SMOOTHING * (seconds - speed.latency)
        speed.throughput += _SMOOTHING * (throughput - speed.throughput)
        self._speeds.move_to_end((peer, model))
        if len(self._speeds) > self._settings.remembered:
            self._speeds.popitem(last=False)


def _doubled(first: float, times: int, longest: float) -> float:
    return min(first * (1 << min(times, 30)), longest)
