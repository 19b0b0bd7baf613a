"""Accounts: the channels by which others pay this node, as far as they are in use, over its Journal.

One ProviderChannel each, made from the Journal when it is first asked for; their deposits follow the
ledger.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from llmesh.core.amount import Amount
from llmesh.core.channel import ProviderChannel
from llmesh.core.ids import PeerId
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, ChannelId
from llmesh.errors import InsufficientBalance, TransactionFailed
from llmesh.journal.channels import AddChannel, ChannelRow, find_channel
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.ledger.ledger import Ledger

__all__ = ["PATIENCE", "Account", "Accounts"]

PATIENCE = 5.0
"""Seconds for a deposit to show in this node's copy of the ledger, or for a commit to be taken."""
PAUSE = 0.2
"""Seconds between two looks at what the ledger says of the channels."""
KEPT = 1024
"""Channels that are held in memory though nothing runs on them."""


@dataclass(slots=True, eq=False)
class Account:
    """A channel, which peer may draw on it, how often it was put right after a failed commit."""

    peer: PeerId
    channel: ProviderChannel
    repairing: trio.Lock = field(default_factory=trio.Lock)
    repairs: int = 0
    damaged: bool = False


class Accounts:
    """Each method gives the one Account of a channel; `watch` is a task to run beside."""

    def __init__(self, chain: Chain, journal: Journal, ledger: Ledger) -> None:
        self._chain = chain
        self._journal = journal
        self._ledger = ledger
        self._accounts: OrderedDict[ChannelId, Account] = OrderedDict()

    async def watch(self) -> None:
        """Keep the deposits at what the ledger says, until cancelled."""
        height = self._ledger.height
        while True:
            height = await self._ledger.after(height)
            for account in list(self._accounts.values()):
                await self._look(account)
            await trio.sleep(PAUSE)

    async def find(self, mark: ChannelId) -> Account | None:
        """A channel that this node knows, from memory or the Journal.  Raises TransactionFailed."""
        account = self._accounts.get(mark)
        if account is not None:
            self._accounts.move_to_end(mark)
            if account.damaged:
                await self.repair(account, account.repairs)
            return account
        row = await self._journal.read(find_channel, Side.PROVIDER, mark)
        if row is None:
            return None
        channel = ProviderChannel(row.config, self._chain, row.deposit, row.provider_books)
        account = Account(row.peer, channel)
        await self._look(account)
        account = self._accounts.setdefault(mark, account)  # another may have been quicker
        self._drop_idle()
        return account

    async def open(self, config: ChannelConfig, mark: ChannelId, peer: PeerId) -> Account:
        """Make a channel known that has a deposit.  Raises InsufficientBalance, TransactionFailed."""
        height, cell = -1, None
        with trio.move_on_after(PATIENCE):
            while cell is None:
                height = await self._ledger.after(height)
                cell = await self._ledger.channel(mark)
        if cell is None:
            raise InsufficientBalance("This node's copy of the ledger shows no deposit in the channel.")
        if await self._journal.read(find_channel, Side.PROVIDER, mark) is None:
            await self._journal.commit(
                AddChannel(ChannelRow(Side.PROVIDER, mark, peer, config, cell.deposit))
            )
        account = await self.find(mark)
        if account is None:
            raise TransactionFailed("The channel was not kept.")
        return account

    async def see_deposit(self, account: Account, wanted: Amount) -> None:
        """Wait a little for this node's copy of the ledger to show what the payer's shows."""
        height = self._ledger.height
        await self._look(account)
        with trio.move_on_after(PATIENCE):
            while account.channel.deposit.balance < wanted:
                height = await self._ledger.after(height)
                await self._look(account)

    async def _look(self, account: Account) -> None:
        cell = await self._ledger.channel(account.channel.id)
        if cell is not None:
            account.channel.deposit = cell.deposit

    def _drop_idle(self) -> None:
        for mark, account in list(self._accounts.items())[:-KEPT]:
            if not account.channel.reserved and account.channel.charged == _durable(account.channel):
                del self._accounts[mark]

    async def repair(self, account: Account, repairs: int) -> None:
        """After a failed commit: go back to what the Journal has, once for all that failed with it.

        Raises TransactionFailed where it cannot be read; until it can, the channel is of no use.
        """
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            async with account.repairing:
                if account.repairs != repairs:
                    return
                account.damaged = True
                row = await self._journal.read(find_channel, Side.PROVIDER, account.channel.id)
                if row is not None:
                    account.channel.reload(row.provider_books)
                    account.repairs += 1
                    account.damaged = False
        if account.damaged:
            raise TransactionFailed("What the channel has been charged is not known now.")


def _durable(channel: ProviderChannel) -> Amount:
    return channel.last.charge.cumulative if channel.last else channel.deposit.claimed
