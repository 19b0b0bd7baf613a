"""A ledger in this process's memory, gone when the process ends: for tests, and to try things out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from llmesh.core.address import Address
from llmesh.core.books import Books, Changes
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ledgerlog import SignedEntry, first_head, ledger_time
from llmesh.core.typed import Sign
from llmesh.ledger.log import Issuer, LogLedger

__all__ = ["MemoryLedger", "MemoryStore", "copy_in_memory"]


class MemoryStore:
    """Entries in memory."""

    def __init__(self) -> None:
        self._entries: list[SignedEntry] = []
        self._places: dict[tuple[Address, int], SignedEntry] = {}

    async def write(self, signed: SignedEntry, changes: Changes) -> None:
        """Keep an entry."""
        operation = signed.entry.operation
        self._entries.append(signed)
        self._places[operation.actor, operation.nonce] = signed

    async def find(self, actor: Address, nonce: int) -> SignedEntry | None:
        """The entry of an actor's so-many-th operation."""
        return self._places.get((actor, nonce))

    async def entries(self, after: int, limit: int) -> Sequence[SignedEntry]:
        """Entries above a number, in their order."""
        return self._entries[after : after + limit]


class MemoryLedger(LogLedger):
    """A ledger with its issuer; `sign` is the issuer's, `clock` counts seconds and never runs back."""

    def __init__(self, genesis: SignedGenesis, sign: Sign, clock: Callable[[], float]) -> None:
        now = partial(_time, genesis.genesis.created_at, clock, clock())
        super().__init__(Books(genesis), first_head(genesis), MemoryStore(), Issuer(sign, now))


def copy_in_memory(genesis: SignedGenesis) -> LogLedger:
    """A member's copy, without entries at first."""
    return LogLedger(Books(genesis), first_head(genesis), MemoryStore())


def _time(started_at: int, clock: Callable[[], float], since: float) -> int:
    return ledger_time(started_at, clock() - since)
