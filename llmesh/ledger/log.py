"""A ledger that is a signed log: the books in memory, its entries in a store.

The issuer enters operations; a member's copy takes entries after checking each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, Books, Changes, LedgerChannel
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ledgerlog import Head, SignedEntry, append, follow
from llmesh.core.operations import SignedOperation
from llmesh.core.typed import Chain, Sign
from llmesh.core.voucher import ChannelId
from llmesh.errors import TransactionFailed
from llmesh.ledger.height import Height

__all__ = ["Issuer", "LogLedger", "Store"]


class Store(Protocol):
    """Where the entries are kept, with the cells they changed."""

    async def write(self, signed: SignedEntry, changes: Changes) -> None:
        """Make an entry and its changes durable in one step.  TransactionFailed: nothing is written.

        It does not wait once that is done, so that a cancel never parts the store from the books.
        """

    async def find(self, actor: Address, nonce: int) -> SignedEntry | None:
        """The entry of an actor's so-many-th operation."""

    async def entries(self, after: int, limit: int) -> Sequence[SignedEntry]:
        """Entries above a number, in their order."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who enters operations: `sign` is by its key, `now` the ledger's time in seconds."""

    sign: Sign
    now: Callable[[], int]


class LogLedger:
    """The books and the log of one swarm; without an `issuer` it is a copy."""

    def __init__(self, books: Books, head: Head, store: Store, issuer: Issuer | None = None) -> None:
        self.head = head
        self.issuer = issuer
        self._books = books
        self._store = store
        self._height = Height(head.sequence)
        self._turn = trio.Lock()

    @property
    def genesis(self) -> SignedGenesis:
        """What it began with."""
        return self._books.genesis

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

    @property
    def has_members(self) -> bool:
        """Whether anybody but the issuer has, or ever had, anything to do with it."""
        return bool(self._books.accounts.keys() - {self.genesis.genesis.issuer})

    async def account(self, owner: Address) -> Account:
        """What an address has."""
        return self._books.account(owner)

    async def used(self, mark: bytes) -> bool:
        """Whether a credit or a case is spent."""
        return self._books.used(mark)

    def stake_of(self, owner: Address) -> Amount:
        """What an address has bonded, without waiting."""
        return self._books.account(owner).stake

    async def channel(self, id: ChannelId) -> LedgerChannel | None:
        """A channel's deposit."""
        return self._books.channel(id)

    async def after(self, height: int) -> int:
        """Wait until there are more entries than `height`; how many there are."""
        return await self._height.after(height)

    async def entries(self, after: int, limit: int) -> Sequence[SignedEntry]:
        """Entries above a number, in their order.  Raises TransactionFailed where they cannot be read."""
        return await self._store.entries(after, limit)

    async def submit(self, signed: SignedOperation) -> None:
        """Enter an operation, unless it is entered already; on return it is durable.

        Raises one of `REFUSALS` where the rules refuse it, TransactionFailed where it could not be
        written or where this is a copy.  Cancelled, it is entered whole or not at all.
        """
        async with self._turn:
            if await self.has(signed):
                return
            if self.issuer is None:
                raise TransactionFailed("Only the issuer of a ledger enters operations.")
            entry, changes = append(self._books, self.head, signed, self.issuer.now(), self.issuer.sign)
            await self._keep(entry, changes)

    async def take(self, signed: SignedEntry) -> None:
        """Keep an entry that came from anywhere, if it is the next and right.

        Raises ValidationFailed, TransactionFailed where it could not be written; then all is as before.
        """
        async with self._turn:
            await self._keep(signed, follow(self._books, self.head, signed))

    async def has(self, signed: SignedOperation) -> bool:
        """Whether this very operation is entered."""
        if signed.nonce > self._books.account(signed.actor).nonce:
            return False
        found = await self._store.find(signed.actor, signed.nonce)
        return found is not None and found.entry.operation == signed

    async def _keep(self, signed: SignedEntry, changes: Changes) -> None:
        await self._store.write(signed, changes)
        self._books.take(changes)
        self.head = signed.head
        self._height.raise_to(signed.entry.sequence)
