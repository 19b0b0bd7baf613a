"""Withdrawal: takes back what this node has deposited where it is of no use any more, by itself.

That is a channel whose provider has cheated or is paid by another, at once, and one that nothing was
bought on for long.  The ledger makes its payer wait, so that the provider can still claim what it has
vouchers for; what is left by then comes back into the balance.  What was bought stays for its provider,
unless that has cheated.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from llmesh.core.amount import Amount
from llmesh.core.books import LedgerChannel
from llmesh.core.operations import FinalizeWithdraw, InitiateWithdraw, Operation
from llmesh.core.payer import has_cheated
from llmesh.core.voucher import ChannelId, channel_id
from llmesh.errors import TransactionFailed
from llmesh.journal.channels import ChannelRow, RecordDeposit, all_channels, reservations
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.mesh.teller import Teller

__all__ = ["Withdrawal", "WithdrawalSettings"]

log = logging.getLogger(__name__)

PERIOD = 60.0
"""Seconds between two looks."""
AGAIN = 3600.0
"""Seconds at least until what the ledger refused is tried again; its time stands still with its issuer."""


@dataclass(frozen=True, slots=True)
class WithdrawalSettings:
    """A channel is given up once nothing was spent on it for `idle` seconds.

    `clock` gives seconds since 1970.
    """

    idle: float = 14 * 86_400.0
    clock: Callable[[], float] = time.time


_DEFAULT = WithdrawalSettings()


class Withdrawal:
    """Withdraws what is due; `run` is a task to run beside."""

    def __init__(
        self, journal: Journal, ledger: Ledger, teller: Teller, settings: WithdrawalSettings = _DEFAULT
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._teller = teller
        self._settings = settings
        self._since: dict[ChannelId, tuple[Amount, float]] = {}
        self._refused: dict[ChannelId, float] = {}

    async def run(self) -> None:
        """Look every minute, until cancelled."""
        while True:
            try:
                await self.withdraw()
            except TransactionFailed as error:
                log.warning("what was deposited is not taken back yet: %s", error.message)
            await trio.sleep(PERIOD)

    async def withdraw(self) -> None:
        """Begin and end the withdrawals that are due.

        Raises TransactionFailed where the ledger is out of reach; what was begun goes on by itself.
        """
        doubtful = {held.channel for held in await self._journal.read(reservations)}
        for row in await self._journal.read(all_channels, Side.PAYER):
            cell = await self._ledger.channel(row.id)
            if cell is None or channel_id(row.config, self._ledger.chain) != row.id:
                continue
            operation = self._due(row, cell, row.id in doubtful)
            if operation is not None and self._refused.get(row.id, -math.inf) <= self._settings.clock():
                await self._perform(row.id, operation)
                cell = await self._ledger.channel(row.id) or cell
            if cell.deposit != row.deposit:
                await self._journal.commit(RecordDeposit(Side.PAYER, row.id, cell.deposit))

    def _due(self, row: ChannelRow, cell: LedgerChannel, doubtful: bool) -> Operation | None:
        deposit, now = cell.deposit, self._settings.clock()
        if deposit.withdrawing:
            return FinalizeWithdraw(row.id) if now >= cell.free_at else None
        spent = deposit.claimed if has_cheated(row.broken) else max(deposit.claimed, row.charged)
        idle = now - self._unchanged(row, now) >= self._settings.idle and not doubtful
        if deposit.balance <= spent or not (row.broken or idle):
            return None
        return InitiateWithdraw(row.id, deposit.balance - spent)

    def _unchanged(self, row: ChannelRow, now: float) -> float:
        """Since when nothing was spent, as far as this node has looked."""
        spent, since = self._since.get(row.id, (row.charged, _last_used(row, now)))
        if spent != row.charged:
            since = now
        since = min(since, now)  # the clock may have been put back
        self._since[row.id] = row.charged, since
        return since

    async def _perform(self, channel: ChannelId, operation: Operation) -> None:
        try:
            await self._teller.perform(operation)
        except REFUSALS as error:
            self._refused[channel] = self._settings.clock() + max(AGAIN, error.retry_after or 0.0)
            log.info("the ledger refuses a withdrawal from a channel so far: %s", error.message)


def _last_used(row: ChannelRow, now: float) -> float:
    return min(now, row.last.receipt.issued_at) if row.last else now
