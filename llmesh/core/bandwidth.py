"""Bandwidth: how long to wait so that bytes go at a given rate, and the rate at which they went.

Sans-IO; times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Bucket", "Speedometer"]

BURST = 0.1
"""Seconds' worth of bytes that may go at once after a rest."""

SPAN = 5.0
"""Seconds over which a speed is measured."""


class Bucket:
    """A token bucket that may run into debt: who takes from it waits until the debt is paid.

    So a piece larger than the bucket passes too, and takers are served in the order they came.
    """

    def __init__(self, rate: float) -> None:
        """`rate` in bytes per second, above 0."""
        if rate <= 0:
            raise ValueError("a rate is above 0")
        self._rate = rate
        self._free_at = 0.0

    def take(self, size: int, now: float) -> float:
        """Take so many bytes; the seconds to wait before they go."""
        self._free_at = max(self._free_at, now - BURST) + size / self._rate
        return max(0.0, self._free_at - now)


class Speedometer:
    """Bytes per second over the last seconds."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._passed: deque[tuple[float, int]] = deque()

    def passed(self, size: int, now: float) -> None:
        """So many bytes have come through."""
        self._passed.append((now, size))

    def rate(self, now: float) -> float:
        """Bytes per second."""
        while self._passed and self._passed[0][0] < now - SPAN:
            self._passed.popleft()
        span = min(SPAN, now - self._began)
        return sum(size for _, size in self._passed) / span if span > 0 else 0.0
