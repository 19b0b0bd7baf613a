"""Stakes and earnings in this process's memory: the first Ledger, gone when the process ends."""

from __future__ import annotations

from collections import OrderedDict

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId, RequestId

__all__ = ["MemoryLedger"]

_REMEMBERED = 1_000_000
"""Fees of this many requests, the latest, are known by their request and never booked twice."""

_NOTHING = Amount(0)


class MemoryLedger:
    """Books in memory; no call ever waits, so each is one indivisible step."""

    def __init__(self) -> None:
        self._stakes: dict[PeerId, Amount] = {}
        self._earnings: dict[PeerId, Amount] = {}
        self._booked: OrderedDict[tuple[PeerId, PeerId, RequestId], None] = OrderedDict()

    async def bond(self, account: PeerId, amount: Amount) -> None:
        """Add to the account's stake."""
        self._stakes[account] = self._stakes.get(account, _NOTHING) + amount

    async def stake(self, account: PeerId) -> Amount:
        """What the account has bonded; nothing for one that never did."""
        return self._stakes.get(account, _NOTHING)

    async def earn(self, provider: PeerId, payer: PeerId, amount: Amount, request: RequestId) -> None:
        """Book the fee of one request of a payer at a provider; a second time changes nothing."""
        booking = (provider, payer, request)
        if booking in self._booked:
            return
        self._earnings[provider] = self._earnings.get(provider, _NOTHING) + amount
        self._booked[booking] = None
        if len(self._booked) > _REMEMBERED:
            self._booked.popitem(last=False)

    async def earnings(self, account: PeerId) -> Amount:
        """All that the account has earned."""
        return self._earnings.get(account, _NOTHING)
