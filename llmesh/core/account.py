"""Purse: what a caller may spend; reserved before an attempt, so that a burst cannot pass the budget.

It knows amounts only: no channel, no provider, no clock.  What must be durable it says: a mark ahead of
the spending, so that a crash never lets a budget be spent twice.
"""

from __future__ import annotations

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId
from llmesh.errors import InsufficientBalance

__all__ = ["BLOCK", "Purse"]

BLOCK = 64
"""The mark is moved by this many quotes at a time, so that few requests wait for the disk."""

_NOTHING = Amount(0)


class Purse:
    """A budget; every method is one indivisible step.

    After a restart `spent` is the mark that the Journal has, at most a block more than was spent;
    `corrected` gives that back once the receipts have been counted.
    """

    def __init__(self, limit: Amount, spent: Amount = _NOTHING) -> None:
        self.limit = limit
        self.spent = self.mark = spent
        self._reserved: dict[AttemptId, Amount] = {}

    @property
    def reserved(self) -> Amount:
        """What attempts under way, or of unknown outcome, may still come to cost."""
        return Amount(sum(quote.micro for quote in self._reserved.values()))

    @property
    def left(self) -> Amount:
        """What a new attempt may cost."""
        return Amount(max(0, self.limit.micro - self.spent.micro - self.reserved.micro))

    def reserve(self, attempt: AttemptId, quote: Amount) -> Amount | None:
        """Hold the quote of a new attempt; the mark to write durably before it is sent, if it moved.

        Raises InsufficientBalance, changing nothing, where the budget does not cover it; RuntimeError for
        an attempt that holds something already.
        """
        if attempt in self._reserved:
            raise RuntimeError("The attempt is under way already.")
        if quote > self.left:
            raise InsufficientBalance(
                f"The budget leaves {self.left} MESH for a quote of {quote}.",
                next_step="Wait until midnight (UTC), when the day's budget is whole again, or use a key"
                " with a larger one.",
            )
        self._reserved[attempt] = quote
        used = self.spent.micro + self.reserved.micro
        if used <= self.mark.micro:
            return None
        self.mark = Amount(min(self.limit.micro, used + quote.micro * (BLOCK - 1)))
        return self.mark

    def spend(self, attempt: AttemptId, price: Amount) -> None:
        """The attempt has cost this much, within its quote.  Raises RuntimeError for anything else."""
        quote = self._reserved.get(attempt)
        if quote is None or price > quote:
            raise RuntimeError(f"{price} MESH cannot be spent where {quote} was held.")
        del self._reserved[attempt]
        self.spent += price

    def release(self, attempt: AttemptId) -> None:
        """The attempt has cost nothing.  Safe to repeat."""
        self._reserved.pop(attempt, None)

    def corrected(self, spent: Amount) -> None:
        """Receipts add up to this much: set it where the mark had stood in for it after a restart."""
        self.spent = min(self.spent, spent)
