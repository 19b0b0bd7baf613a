"""DurablePurse: a caller's budget for one day, which neither a burst nor a crash can pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from llmesh.core.account import Purse
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId

__all__ = ["DurablePurse"]


class DurablePurse:
    """A Purse whose mark is on the disk before anything that it covers is sent.

    `keep` makes a mark durable.
    """

    def __init__(self, purse: Purse, keep: Callable[[Amount], Awaitable[None]]) -> None:
        self._purse = purse
        self._keep = keep
        self._kept = purse.mark
        self._keeping = trio.Lock()

    @property
    def limit(self) -> Amount:
        """The budget."""
        return self._purse.limit

    @property
    def left(self) -> Amount:
        """What a new attempt may cost."""
        return self._purse.left

    @property
    def committed(self) -> Amount:
        """What was spent, and what attempts under way may still come to cost."""
        return self._purse.spent + self._purse.reserved

    @property
    def marked(self) -> bool:
        """Whether the mark that was kept is ahead of what is committed."""
        return self._kept > self.committed

    async def hold(self, attempt: AttemptId, quote: Amount) -> None:
        """Hold the quote of an attempt; on return it may be sent.

        One that holds something already, since its outcome is not known, goes on with the new quote.
        Raises InsufficientBalance where the budget does not cover it, TransactionFailed where the mark
        cannot be kept.  Then, and when cancelled, nothing is held.
        """
        self._purse.release(attempt)
        self._purse.reserve(attempt, quote)
        try:
            await self._keep_mark()
        except BaseException:
            self._purse.release(attempt)
            raise

    def spend(self, attempt: AttemptId, price: Amount) -> None:
        """The attempt has cost this much, at most its quote."""
        self._purse.spend(attempt, price)

    def release(self, attempt: AttemptId) -> None:
        """The attempt has cost nothing.  Safe to repeat."""
        self._purse.release(attempt)

    async def _keep_mark(self) -> None:
        """Whoever is under a mark that is still on its way to the disk waits for it too."""
        if self._kept >= self._purse.mark:
            return
        async with self._keeping:
            mark = self._purse.mark
            if self._kept < mark:
                await self._keep(mark)
                self._kept = mark
