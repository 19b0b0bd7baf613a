"""Which model a reference means, and in what order its providers are tried.

Pure functions: offers, wishes, measurements and a random source in; one ModelId and an order out.
Nothing here refuses a peer for good: who is in poor standing comes last, not never.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.credentials import Payee
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Skipped
from llmesh.core.reference import ModelRef
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import InsufficientStake, ModelNotFound

__all__ = [
    "MAX_SKIPPED",
    "Candidate",
    "Measured",
    "Plan",
    "Rank",
    "Trust",
    "eligible",
    "most_bonded",
    "rank",
]

MAX_SKIPPED = 32
"""The most providers that one answer names as passed over."""

_STRANGER_LATENCY = 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider of the model that is wanted.

    `payee` is who answers for it; `fee` is 0 and there is no `payee` where that is this node itself.
    """

    peer_id: PeerId
    addresses: tuple[str, ...]
    offer: Offer
    stake: Amount
    fee: Amount
    payee: Payee | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Who may serve a request, at least one and the best first, and who was passed over at once."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...] = ()


class Trust(IntEnum):
    """How a peer stands with this node, best first."""

    GOOD = 0
    FAILING = 1
    DOWN = 2
    DISGRACED = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What this node knows of a peer by experience.

    `latency` is seconds from asking to answered, `throughput` tokens per second, `load` the share
    of capacity the peer last reported, `under_way` this node's own attempts there.
    """

    trust: Trust = Trust.GOOD
    latency: float | None = None
    throughput: float = 0.0
    load: float = 0.0
    under_way: int = 0


Rank: TypeAlias = tuple[float, ...]


def most_bonded(ref: ModelRef, offers: Iterable[tuple[Offer, Announcement]]) -> ModelId | None:
    """The one model a name means: most bonded stake behind it, then most providers, then smallest id.

    `offers` are those of the reference's name; its version, if any, filters them.
    """
    stakes: defaultdict[ModelId, dict[PeerId, int]] = defaultdict(dict)
    for offer, announcement in offers:
        if not ref.version or offer.card.version == ref.version:
            stakes[offer.model_id][announcement.peer_id] = announcement.stake.micro
    ids = sorted(stakes, key=lambda id: (-sum(stakes[id].values()), -len(stakes[id]), id))
    return ids[0] if ids else None


def eligible(candidates: Sequence[Candidate], max_fee: Amount | None, wishes: Wishes, own: PeerId) -> Plan:
    """Those of at least one candidate that the caller wishes for, and at most `MAX_SKIPPED` others.

    Raises ModelNotFound that says what excluded them all.
    """
    name = candidates[0].offer.card.name
    unwanted = [skipped for c in candidates if (skipped := _unwanted(c, wishes, own))]
    gone = {skipped.peer_id for skipped in unwanted}
    wanted = [c for c in candidates if c.peer_id not in gone]
    if not wanted:
        raise ModelNotFound(
            f"None of the {len(candidates)} known providers of {name} is wished for (at least"
            f" {wishes.min_stake} MESH of stake, {len(wishes.allow) or 'all'} allowed,"
            f" {len(wishes.deny)} denied)."
        )
    affordable = [c for c in wanted if max_fee is None or c.fee <= max_fee]
    if not affordable:
        cheapest = min(c.fee for c in wanted)
        raise ModelNotFound(
            f"The cheapest offer of {name} costs {cheapest} MESH, more than the max_fee of {max_fee} MESH."
        )
    dear = [_dear(c, max_fee) for c in wanted if max_fee is not None and c.fee > max_fee]
    return Plan(tuple(affordable), (*unwanted, *dear)[:MAX_SKIPPED])


def rank(
    candidates: Iterable[Candidate],
    measured: Callable[[Candidate], Measured],
    sort: Sort,
    rng: Callable[[], float],
) -> list[Candidate]:
    """The candidates, best first; `rng` (0 to 1) spreads the load over those that are about equal."""
    order = _SORTS[sort]
    return sorted(candidates, key=lambda c: (*order(c, measured(c)), rng()))


def _unwanted(candidate: Candidate, wishes: Wishes, own: PeerId) -> Skipped | None:
    peer = candidate.peer_id
    if peer in wishes.deny:
        return Skipped(peer, ModelNotFound.code, "The request ignores this provider.")
    if wishes.allow and peer not in wishes.allow:
        return Skipped(
            peer, ModelNotFound.code, "It is none of the providers that the request is limited to."
        )
    if peer != own and candidate.stake < wishes.min_stake:
        reason = f"Its stake is {candidate.stake} MESH, less than {wishes.min_stake} MESH."
        return Skipped(peer, InsufficientStake.code, reason)
    return None


def _dear(candidate: Candidate, max_fee: Amount) -> Skipped:
    reason = f"It asks {candidate.fee} MESH, more than the max_fee of {max_fee} MESH."
    return Skipped(candidate.peer_id, ModelNotFound.code, reason)


def _by_price(candidate: Candidate, measured: Measured) -> Rank:
    return (measured.trust, candidate.fee.micro, _wait(measured))


def _by_latency(candidate: Candidate, measured: Measured) -> Rank:
    return (measured.trust, _wait(measured), candidate.fee.micro)


def _by_throughput(candidate: Candidate, measured: Measured) -> Rank:
    share = measured.throughput * (1 - min(measured.load, 1)) / (1 + measured.under_way)
    return (measured.trust, -_bucket(share), _wait(measured), candidate.fee.micro)


_SORTS = {Sort.PRICE: _by_price, Sort.LATENCY: _by_latency, Sort.THROUGHPUT: _by_throughput}


def _wait(measured: Measured) -> int:
    """The expected seconds until answered, in steps of a factor of two; a stranger gets the benefit."""
    latency = _STRANGER_LATENCY if measured.latency is None else measured.latency
    return _bucket(latency * (1 + measured.load) * (1 + measured.under_way))


def _bucket(value: float) -> int:
    # Differences under a factor of two are noise; without steps all consumers flock to one peer.
    return math.floor(math.log2(max(value, 1e-3)))
