"""Settlement: turns what peers' vouchers owe this node into money on the ledger, by itself.

A channel is claimed when enough is owed, or for long enough, and at once when its payer takes the
deposit out; claims go out together, as many as one operation holds, and what they cost decides what is
too little to claim.  Nothing is claimed while an earlier operation still waits for the ledger, so none
goes out twice in two sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.channel import NOTHING, Deposit
from llmesh.core.voucher import ChannelId
from llmesh.errors import MeshError
from llmesh.journal.channels import ChannelRow, RecordDeposit, all_channels
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.mesh.teller import Teller

__all__ = ["Settlement", "SettlementSettings"]

BUSY = 2.0
"""Seconds between two looks while an operation waits for the ledger."""
_ENOUGH = Amount.parse(10)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SettlementSettings:
    """Claim where all channels owe `value` together, or one has owed for `age` seconds.

    `cost` is what claiming one channel costs: less than that is not worth it.  Looks every `period`
    seconds, and whenever the ledger grows.
    """

    value: Amount = _ENOUGH
    age: float = 3_600.0
    cost: Amount = NOTHING
    period: float = 60.0


@dataclass(frozen=True, slots=True)
class _Debt:
    """What one channel owes, by a voucher of its payer."""

    item: ops.ClaimItem
    owed: Amount
    leaving: bool


class Settlement:
    """Claims for this node; `noted` hears what the ledger says of each channel."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        teller: Teller,
        noted: Callable[[ChannelId, Deposit], None],
        settings: SettlementSettings = SettlementSettings(),
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._teller = teller
        self._noted = noted
        self._settings = settings
        self._since: dict[ChannelId, float] = {}

    async def run(self) -> None:
        """Look, claim what is due, wait; until cancelled."""
        while True:
            height, pause = self._ledger.height, self._settings.period
            try:
                if await self._teller.is_busy():
                    pause = min(pause, BUSY)
                else:
                    await self._claim(await self._due())
            except MeshError as error:
                _log.warning("Claims wait for the next look: %s", error.message)
            with trio.move_on_after(pause):
                await self._ledger.after(height)

    async def settle(self) -> None:
        """Claim all that is owed, now, however little.

        Raises TransactionFailed where the ledger cannot be reached; what went out is carried through.
        """
        await self._claim(await self._debts())

    async def _claim(self, debts: list[_Debt]) -> None:
        """Claim these, and have all that was claimed paid into the account's balance."""
        for start in range(0, len(debts), ops.MAX_CLAIMS):
            items = tuple(debt.item for debt in debts[start : start + ops.MAX_CLAIMS])
            await self._perform(ops.Claim(items))
        own = await self._ledger.account(self._teller.signer.address)
        if own.claimed > own.settled:
            await self._perform(ops.Settle(self._teller.signer.address))

    async def _perform(self, operation: ops.Operation) -> None:
        try:
            await self._teller.perform(operation)
        except REFUSALS as error:  # an earlier claim was more than it seemed; the next look sees it
            _log.warning("The ledger refused a claim: %s", error.message)

    async def _due(self) -> list[_Debt]:
        """What is to be claimed now."""
        debts = await self._debts()
        now = trio.current_time()
        owing = {debt.item.voucher.voucher.channel for debt in debts}
        self._since = {channel: self._since.get(channel, now) for channel in owing}
        worth = [debt for debt in debts if debt.owed > self._settings.cost or debt.leaving]
        total = sum((debt.owed for debt in worth), NOTHING)
        oldest = min((self._since[debt.item.voucher.voucher.channel] for debt in worth), default=now)
        if total >= self._settings.value or now - oldest >= self._settings.age:
            return worth
        return [debt for debt in worth if debt.leaving]

    async def _debts(self) -> list[_Debt]:
        found = []
        for row in await self._journal.read(all_channels, Side.PROVIDER):
            deposit = await self._deposit(row)
            debt = None if deposit is None else _debt(row, deposit)
            if debt is not None:
                found.append(debt)
        return found

    async def _deposit(self, row: ChannelRow) -> Deposit | None:
        """What the ledger says of a channel, noted where it is news; None for what it does not have."""
        cell = await self._ledger.channel(row.id)
        if cell is None:
            return None
        if cell.deposit != row.deposit:
            await self._journal.commit(RecordDeposit(Side.PROVIDER, row.id, cell.deposit))
            self._noted(row.id, cell.deposit)
        return cell.deposit


def _debt(row: ChannelRow, deposit: Deposit) -> _Debt | None:
    """What is charged, durably, above what is claimed; never more than voucher and deposit cover."""
    if row.best is None:
        return None
    total = min(row.charged, row.best.ceiling, deposit.balance)
    if total <= deposit.claimed:
        return None
    return _Debt(ops.ClaimItem(row.best, total), total - deposit.claimed, bool(deposit.withdrawing))
