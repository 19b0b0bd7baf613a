"""Settlement: what this node has charged is claimed on the ledger and paid out, by itself.

Claims go out many channels at a time, once enough has come together or waited long enough, and at once
where a payer takes its deposit back.  All of it is in the Journal, so a restart loses none; the Teller
sees to it that a claim whose fate is unknown is not made a second time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from llmesh.core import operations
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.voucher import ChannelId, channel_id
from llmesh.errors import TransactionFailed
from llmesh.journal.channels import ChannelRow, RecordDeposit, unclaimed_channels
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.mesh.teller import Teller

__all__ = ["Settlement", "SettlementSettings"]

log = logging.getLogger(__name__)

PERIOD = 60.0
PAUSE = 1.0
"""Seconds between two looks: at most, and at least however fast the ledger grows."""
REST = 60.0
"""Seconds after a claim until what a channel earns is claimed again, however much it is."""


@dataclass(frozen=True, slots=True)
class SettlementSettings:
    """A channel is claimed once `share` of its deposit, or anything for `age` seconds, is unclaimed.

    `clock` gives seconds since 1970.
    """

    share: float = 0.05
    age: float = 86_400.0
    clock: Callable[[], float] = time.time


_DEFAULT = SettlementSettings()


@dataclass(frozen=True, slots=True)
class _Due:
    """A channel with what may be claimed of it now, in all."""

    row: ChannelRow
    deposit: Deposit
    total: Amount


class Settlement:
    """Claims what is due; `run` is a task to run beside."""

    def __init__(
        self, journal: Journal, ledger: Ledger, teller: Teller, settings: SettlementSettings = _DEFAULT
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._teller = teller
        self._settings = settings
        self._since: dict[ChannelId, float] = {}
        self._rests: dict[ChannelId, float] = {}

    async def run(self) -> None:
        """Settle whenever something is due, until cancelled."""
        height = -1
        while True:
            with trio.move_on_after(PERIOD):
                height = await self._ledger.after(height)
            try:
                if await self._teller.is_busy():
                    height = -1  # look again soon, and claim nothing twice in two sizes meanwhile
                else:
                    await self.settle()
            except TransactionFailed as error:
                log.warning("what was earned is not claimed yet: %s", error.message)
            await trio.sleep(PAUSE)

    async def settle(self) -> None:
        """Claim what is due, and have it paid out.

        Raises TransactionFailed where the ledger is out of reach; what was begun goes on by itself.
        """
        due = [one for one in await self._unclaimed() if self._is_due(one)]
        for start in range(0, len(due), operations.MAX_CLAIMS):
            await self._claim(due[start : start + operations.MAX_CLAIMS])
        own = self._teller.signer.address
        account = await self._ledger.account(own)
        if account.claimed > account.settled:
            await self._perform(operations.Settle(own))

    async def _unclaimed(self) -> Sequence[_Due]:
        chain, found = self._ledger.chain, []
        for row in await self._journal.read(unclaimed_channels):
            if channel_id(row.config, chain) == row.id and (cell := await self._ledger.channel(row.id)):
                best = row.best.ceiling if row.best else Amount(0)
                total = min(row.charged, best, cell.deposit.balance)
                if total > cell.deposit.claimed:
                    found.append(_Due(row, cell.deposit, total))
                else:
                    await self._note(row, cell.deposit)
        return found

    def _is_due(self, one: _Due) -> bool:
        now, deposit = self._settings.clock(), one.deposit
        last = one.row.last.receipt.issued_at if one.row.last else now
        since = self._since.setdefault(one.row.id, min(now, last))
        unclaimed = one.total.micro - deposit.claimed.micro
        rested = trio.current_time() >= self._rests.get(one.row.id, 0.0)
        enough = rested and unclaimed >= self._settings.share * deposit.balance.micro
        return enough or bool(deposit.withdrawing) or now - since >= self._settings.age

    async def _claim(self, due: Sequence[_Due]) -> None:
        """All at once; one after the other if the ledger refuses that."""
        if not await self._perform(operations.Claim(tuple(_items(due)))) and len(due) > 1:
            for one in due:
                await self._perform(operations.Claim(tuple(_items([one]))))
        for one in due:
            self._since.pop(one.row.id, None)
            cell = await self._ledger.channel(one.row.id)
            if cell is not None:
                if cell.deposit.claimed >= one.total:
                    self._rests[one.row.id] = trio.current_time() + REST
                await self._note(one.row, cell.deposit)

    async def _note(self, row: ChannelRow, deposit: Deposit) -> None:
        if deposit != row.deposit:
            await self._journal.commit(RecordDeposit(Side.PROVIDER, row.id, deposit))

    async def _perform(self, operation: operations.Operation) -> bool:
        try:
            await self._teller.perform(operation)
        except REFUSALS as error:
            log.error("the ledger refused a %s: %s", type(operation).__name__.lower(), error.message)
            return False
        return True


def _items(due: Sequence[_Due]) -> Iterator[operations.ClaimItem]:
    for one in due:
        if one.row.best is not None:
            yield operations.ClaimItem(one.row.best, one.total)
