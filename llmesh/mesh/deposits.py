"""Deposits: what this node pays into the channels by which it buys.

Enough for a number of inferences, or as much as was spent there before, ahead of need where there is money
for it, and never more in advance than that: what still waits for the ledger is done before anything is
added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from llmesh.core import operations
from llmesh.core.address import address_text
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.payer import PayerChannel
from llmesh.errors import InsufficientBalance, TransactionFailed
from llmesh.ledger.ledger import Ledger
from llmesh.mesh.teller import Teller

__all__ = ["AWAY", "Deposits"]

AWAY = 30.0
"""Seconds for which no deposit is tried after the ledger was out of reach, so that nobody waits for it."""
LOW = 2
"""A deposit is filled up again, before it is needed, where less than one part of so many is left of it."""
_NO_DEPOSIT = "Ask again once the issuer can be reached; what is free or has a deposit still answers."


class Deposits:
    """Of one payer; a full deposit covers `quotes` inferences, and no less than was spent there before.

    So the more is bought, the more seldom something is paid in.
    """

    def __init__(self, ledger: Ledger, teller: Teller, quotes: int) -> None:
        self._ledger = ledger
        self._teller = teller
        self._quotes = quotes
        self._away_until = 0.0

    async def seen(self, channel: PayerChannel) -> Deposit:
        """What the ledger says of a channel."""
        cell = await self._ledger.channel(channel.id)
        return cell.deposit if cell else channel.deposit

    def is_low(self, channel: PayerChannel, quote: Amount) -> bool:
        """Whether a channel should be filled up."""
        return channel.left.micro < self._full(channel, quote) // LOW

    async def cover(self, channel: PayerChannel, quote: Amount) -> None:
        """Pay in what an attempt needs, and for those after it as far as the money goes.

        Raises InsufficientBalance where it does not go that far, TransactionFailed where the ledger is out
        of reach.
        """
        left = await self._left(channel)
        if left >= quote.micro:
            return
        balance = await self._balance()
        amount = max(quote.micro - left, _more(left, self._full(channel, quote), balance))
        if amount > balance:
            own = address_text(self._teller.signer.address)
            raise InsufficientBalance(
                f"An inference costs {quote} MESH and this node has {Amount(balance)} MESH.",
                next_step="To get some, run `llmesh invite --credit MESH` on the issuer of its swarm, and"
                " start this node with --join and the line that it prints; or have another member run"
                f" `llmesh send {own} MESH`.",
            )
        await self._pay_in(channel, amount)

    async def fill(self, channel: PayerChannel, quote: Amount) -> None:
        """Pay in what a full deposit lacks, unless it is little.  Raises TransactionFailed."""
        left = await self._left(channel)
        full = self._full(channel, quote)
        amount = _more(left, full, await self._balance())
        if left < full // LOW <= amount:
            await self._pay_in(channel, amount)

    def _full(self, channel: PayerChannel, quote: Amount) -> int:
        return max(self._quotes * quote.micro, channel.books.spent.micro)

    async def _left(self, channel: PayerChannel) -> int:
        """What a channel has left by the ledger, once all that waits for it is done."""
        with self._reaching():
            await self._teller.catch_up()
        usable = (await self.seen(channel)).usable.micro
        return max(0, usable - channel.books.spent.micro - channel.reserved.micro)

    async def _balance(self) -> int:
        return (await self._ledger.account(self._teller.signer.address)).balance.micro

    async def _pay_in(self, channel: PayerChannel, amount: int) -> None:
        with self._reaching():
            await self._teller.perform(operations.Deposit(channel.config, Amount(amount)))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        if trio.current_time() < self._away_until:
            raise TransactionFailed(
                "The ledger could not be reached a moment ago; no deposit is made now.",
                next_step=_NO_DEPOSIT,
            )
        try:
            yield
        except TransactionFailed as error:
            self._away_until = trio.current_time() + AWAY
            raise TransactionFailed(error.message, next_step=_NO_DEPOSIT) from error


def _more(left: int, full: int, balance: int) -> int:
    """No more than half of what there is, so that one provider's failure leaves money for the next."""
    return min(max(0, full - left), balance // 2)
