"""The ledger's books: who has what, which channel holds what, and what one operation changes of it.

A View is how the rules (core.rules) read them, Changes are what they give; books in memory and books in
a database are the same books because they take the same changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.channel import NOTHING, Deposit
from llmesh.core.encoding import Json, canonical_json
from llmesh.core.genesis import SignedGenesis
from llmesh.core.voucher import ChannelConfig, ChannelId

__all__ = ["EMPTY", "Account", "Books", "Changes", "LedgerChannel", "View"]


@dataclass(frozen=True, slots=True)
class Account:
    """What one address has: free, bonded, on its way out of the bond (free at `free_at`), and earned.

    `claimed` is all that was ever claimed for it, `settled` how much of that was paid into its balance;
    `nonce` counts its operations.
    """

    balance: Amount = NOTHING
    stake: Amount = NOTHING
    unbonding: Amount = NOTHING
    free_at: int = 0
    claimed: Amount = NOTHING
    settled: Amount = NOTHING
    nonce: int = 0


EMPTY = Account()
"""An address that nothing is known of."""


@dataclass(frozen=True, slots=True)
class LedgerChannel:
    """A channel's deposit; what is being withdrawn of it may be taken at `free_at`."""

    config: ChannelConfig
    deposit: Deposit
    free_at: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """The cells that one operation leaves behind, whole; all others stay as they are."""

    accounts: dict[Address, Account]
    channels: dict[ChannelId, LedgerChannel]
    used: frozenset[bytes]
    minted: Amount

    @property
    def hash(self) -> bytes:
        """What the log says that the operation led to."""
        accounts: Json = {owner.hex(): _figures(account) for owner, account in self.accounts.items()}
        channels: Json = {
            mark.hex(): [*_figures(cell.deposit), str(cell.free_at)] for mark, cell in self.channels.items()
        }
        used: Json = [mark.hex() for mark in sorted(self.used)]
        record: Json = {
            "accounts": accounts,
            "channels": channels,
            "minted": str(self.minted.micro),
            "used": used,
        }
        return crypto.keccak256(canonical_json(record))


def _figures(cell: Account | Deposit) -> list[Json]:
    """The cell's figures in their order, as texts."""
    values = (getattr(cell, name) for name in cell.__slots__)
    return [str(value.micro if isinstance(value, Amount) else value) for value in values]


class View(Protocol):
    """Books as the rules read them."""

    @property
    def genesis(self) -> SignedGenesis:
        """What they began with."""

    @property
    def minted(self) -> Amount:
        """All the money there is."""

    def account(self, owner: Address) -> Account:
        """`EMPTY` for one that is not known."""

    def channel(self, channel: ChannelId) -> LedgerChannel | None:
        """None for one that was never paid into."""

    def used(self, mark: bytes) -> bool:
        """Whether a credit or a case is spent."""


class Books:
    """Books in memory."""

    def __init__(self, genesis: SignedGenesis) -> None:
        self.genesis = genesis
        self.minted = genesis.genesis.minted
        self.accounts = {owner: Account(amount) for owner, amount in genesis.genesis.allocations}
        self.channels: dict[ChannelId, LedgerChannel] = {}
        self.marks: set[bytes] = set()

    def account(self, owner: Address) -> Account:
        """What an address has."""
        return self.accounts.get(owner, EMPTY)

    def channel(self, channel: ChannelId) -> LedgerChannel | None:
        """A channel that was paid into."""
        return self.channels.get(channel)

    def used(self, mark: bytes) -> bool:
        """Whether a credit or a case is spent."""
        return mark in self.marks

    def take(self, changes: Changes) -> None:
        """Make the changes of one operation."""
        self.accounts |= changes.accounts
        self.channels |= changes.channels
        self.marks |= changes.used
        self.minted = changes.minted

    @property
    def held(self) -> Amount:
        """All balances, stakes, deposits and what is claimed but not paid out; always equal to `minted`."""
        own = sum(
            (a.balance.micro + a.stake.micro + a.unbonding.micro + a.claimed.micro - a.settled.micro)
            for a in self.accounts.values()
        )
        deposits = (cell.deposit for cell in self.channels.values())
        return Amount(own + sum(d.balance.micro - d.claimed.micro for d in deposits))
