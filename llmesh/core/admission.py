"""Admission: may this attempt start now?  Answered first and cheaply, before any work is done.

The worker still refuses what only it can know (shapes, tokens).  No clock: durations are told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import PeerId
from llmesh.errors import NodeBusy, TooLarge

__all__ = ["Admission", "Limits", "Place", "size_of"]

_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider takes on: attempts at once, in all and per peer; input bytes of one and of all.

    An attempt that runs for more than `seconds` is ended.
    """

    running: int = 256
    per_peer: int = 128
    input_bytes: int = 8 << 20
    held_bytes: int = 256 << 20
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """What one admitted attempt occupies."""

    consumer: PeerId
    size: int


def size_of(values: Mapping[str, Value]) -> int:
    """About how many bytes named values take on the wire; never recurses."""
    total = 0
    waiting: list[Value] = list(values.values())
    for name in values:
        total += len(name)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            total += len(value.data)
        elif isinstance(value, str):
            total += len(value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            total += sum(map(len, value))
            waiting.extend(value.values())
        total += 1
    return total


class Admission:
    """Counts what runs.  Every place that `admit` gives is given back once by `release`.

    `own` is this node itself, which may take all of its places; every other peer has its share.
    """

    def __init__(self, limits: Limits, own: PeerId) -> None:
        self.limits = limits
        self._own = own
        self._running: Counter[PeerId] = Counter()
        self._held = 0
        self._seconds = 0.1

    @property
    def running(self) -> int:
        """Attempts that hold a place now."""
        return self._running.total()

    @property
    def load(self) -> float:
        """Share of the places in use, 0 to 1."""
        return self.running / self.limits.running

    def admit(self, consumer: PeerId, size: int) -> Place:
        """Take a place for an input of so many bytes.  Raises TooLarge, or NodeBusy where none is free."""
        if size > self.limits.input_bytes:
            raise TooLarge(f"The input takes {size} bytes; this provider takes {self.limits.input_bytes}.")
        self.check_room(consumer, size)
        self._running[consumer] += 1
        self._held += size
        return Place(consumer, size)

    def check_room(self, consumer: PeerId, size: int = 0) -> None:
        """Raises NodeBusy where no place is free."""
        if consumer != self._own and self._running[consumer] >= self.limits.per_peer:
            raise self._busy(f"All {self.limits.per_peer} places that one peer may have are taken.")
        if self.running >= self.limits.running or self._held + size > self.limits.held_bytes:
            raise self._busy(f"No place is free; {self.running} requests are running.")

    def release(self, place: Place, seconds: float) -> None:
        """Give the place back after so many seconds of use."""
        self._running[place.consumer] -= 1
        if not self._running[place.consumer]:
            del self._running[place.consumer]
        self._held -= place.size
        self._seconds += _SMOOTHING * (seconds - self._seconds)

    def _busy(self, why: str) -> NodeBusy:
        # The places fall free one by one; the mean use is the longest that one takes on average.
        return NodeBusy(why, retry_after=round(min(max(self._seconds, 0.05), 60.0), 3))
