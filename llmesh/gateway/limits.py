"""Rate limits by the `limits` library: exact moving windows, in memory, gone with the process."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from llmesh.errors import RateLimited, TooLarge
from llmesh.gateway.callers import Counted
from llmesh.gateway.rates import Rate, Rates

__all__ = ["Limits", "OverLimit"]

PRUNE_AT = 4096
"""Names whose windows have emptied are dropped each time that many are known, or twice what was left."""


class OverLimit(RateLimited):
    """A refusal that knows which limit of what window was reached."""

    def __init__(self, what: Counted, rate: Rate, wait: float) -> None:
        super().__init__(
            f"The limit of {rate} ({what}) is reached; the node's --limits sets it.", retry_after=wait
        )
        self.headers = {
            "RateLimit-Policy": f'"{what}";q={rate.count};w={rate.seconds}',
            "RateLimit": f'"{what}";r=0;t={math.ceil(wait)}',
        }
        """As in draft-ietf-httpapi-ratelimit-headers-10."""


class Limits:
    """Counts by name.  Counting and refusing is one indivisible step of the event loop."""

    def __init__(self, rates: Rates) -> None:
        self._storage = MemoryStorage()
        self._windows = MovingWindowRateLimiter(self._storage)
        self._rates = {
            Counted.INFERENCE: rates.inference,
            Counted.DEPLOY: rates.deploy,
            Counted.API: rates.api,
        }
        self._items = {what: _item(what, rate) for what, rate in self._rates.items() if rate}
        self._prune_at = PRUNE_AT

    def count(self, what: Counted, who: str, cost: int = 1) -> None:
        """Count `cost` of something by `who`, all or nothing.

        Raises OverLimit, and TooLarge for what would be over the limit at any time.
        """
        item, rate = self._items.get(what), self._rates[what]
        if item is None or rate is None:
            return
        if cost > rate.count:
            raise TooLarge(
                f"{cost} at once ({what}) are more than the limit of {rate} ever allows; ask for fewer."
            )
        if len(self._storage.events) >= self._prune_at:
            self._prune()
        if not self._windows.hit(item, who, cost=cost):
            reset = self._windows.get_window_stats(item, who).reset_time
            raise OverLimit(what, rate, max(0.0, reset - time.time()))

    def _prune(self) -> None:
        """The library empties what has expired but keeps the names."""
        events = self._storage.events
        for name in [name for name, entries in list(events.items()) if not entries]:
            self._storage.clear(name)
        self._prune_at = max(PRUNE_AT, 2 * len(events))


def _item(what: Counted, rate: Rate) -> RateLimitItem:
    return RateLimitItemPerSecond(rate.count, rate.seconds, namespace=str(what))
