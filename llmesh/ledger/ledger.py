"""Where stakes and earnings are booked, as an interface; `memory` is the first of its kind."""

from __future__ import annotations

from typing import Protocol

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId, RequestId

__all__ = ["Ledger"]


class Ledger(Protocol):
    """Books of stakes and earnings; every call is one indivisible step."""

    async def bond(self, account: PeerId, amount: Amount) -> None:
        """Add to the account's stake."""

    async def stake(self, account: PeerId) -> Amount:
        """What the account has bonded."""

    async def earn(self, provider: PeerId, payer: PeerId, amount: Amount, request: RequestId) -> None:
        """Book the fee of one served request; a second time for the same request changes nothing."""

    async def earnings(self, account: PeerId) -> Amount:
        """All that the account has earned."""
