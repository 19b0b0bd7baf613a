"""A ledger in this process's memory, its issuer included; gone when the process ends."""

from __future__ import annotations

from collections.abc import Callable

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, Books, LedgerChannel
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ledgerlog import append, first_head, ledger_time
from llmesh.core.operations import SignedOperation
from llmesh.core.typed import Chain, Sign
from llmesh.core.voucher import ChannelId
from llmesh.ledger.height import Height

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Books and log in memory; `sign` is the issuer's, `clock` counts seconds and never runs back."""

    def __init__(self, genesis: SignedGenesis, sign: Sign, clock: Callable[[], float]) -> None:
        self.genesis = genesis
        self._sign = sign
        self._clock = clock
        self._since = clock()
        self._books = Books(genesis)
        self._head = first_head(genesis)
        self._height = Height()
        self._entered: dict[tuple[Address, int], SignedOperation] = {}

    @property
    def chain(self) -> Chain:
        """What signatures count on."""
        return self.genesis.chain

    @property
    def min_stake(self) -> Amount:
        """What a provider bonds at least."""
        return self.genesis.genesis.min_stake

    @property
    def height(self) -> int:
        """How many entries there are."""
        return self._height.value

    async def account(self, owner: Address) -> Account:
        """What an address has."""
        return self._books.account(owner)

    async def channel(self, id: ChannelId) -> LedgerChannel | None:
        """A channel's deposit."""
        return self._books.channel(id)

    async def submit(self, signed: SignedOperation) -> None:
        """Enter an operation, unless it is entered already.  Raises one of `REFUSALS`."""
        place = signed.actor, signed.nonce
        if self._entered.get(place) == signed:
            return
        at = ledger_time(self.genesis.genesis.created_at, self._clock() - self._since)
        entry, changes = append(self._books, self._head, signed, at, self._sign)
        self._books.take(changes)
        self._head = entry.head
        self._entered[place] = signed
        self._height.raise_to(entry.entry.sequence)

    async def after(self, height: int) -> int:
        """Wait until there are more entries than `height`; how many there are."""
        return await self._height.after(height)
