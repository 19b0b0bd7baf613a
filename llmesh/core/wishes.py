"""Wishes: what a caller asks of the providers of an inference."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId

__all__ = ["Sort", "Wishes"]

_NO_STAKE = Amount(0)


class Sort(Enum):
    """What a caller cares about first; the others break ties."""

    PRICE = "price"
    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of providers; an empty `allow` allows all.  The fee's limit is in the request."""

    sort: Sort = Sort.PRICE
    min_stake: Amount = _NO_STAKE
    allow: frozenset[PeerId] = frozenset()
    deny: frozenset[PeerId] = frozenset()
