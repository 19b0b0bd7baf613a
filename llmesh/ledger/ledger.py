"""Ledger: where balances, stakes and deposits live, as an interface; `memory` is the first of its kind.

It knows addresses and signed operations, no nodes.  What an operation does is core.rules, whichever
ledger takes it.
"""

from __future__ import annotations

from typing import Protocol

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, LedgerChannel
from llmesh.core.operations import SignedOperation
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelId
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    InsufficientStake,
    Unauthorized,
    ValidationFailed,
)

__all__ = ["REFUSALS", "Ledger"]

REFUSALS = (ValidationFailed, Unauthorized, Conflict, InsufficientBalance, InsufficientStake)
"""What `submit` raises where the rules refuse an operation; it will not be taken as it is."""


class Ledger(Protocol):
    """Books that all members of a swarm agree on, as far as this node has seen them."""

    @property
    def chain(self) -> Chain:
        """What signatures count on."""

    @property
    def min_stake(self) -> Amount:
        """What a provider bonds at least."""

    @property
    def height(self) -> int:
        """How many entries this node has seen."""

    async def account(self, owner: Address) -> Account:
        """What an address has; `EMPTY` for one that is not known."""

    async def channel(self, id: ChannelId) -> LedgerChannel | None:
        """A channel's deposit; None for one that was never paid into."""

    async def submit(self, signed: SignedOperation) -> None:
        """Have an operation entered; on return it is durable, and `account` shows it.

        The identical operation again changes nothing and returns as the first time did.  Raises one of
        `REFUSALS` where it is refused, having changed nothing; any other MeshError (NodeUnreachable,
        NetworkError, TransactionFailed) where its fate is unknown or a later try may succeed: then only
        the identical operation may be submitted in its place.  So it is after a cancel, too.
        """

    async def after(self, height: int) -> int:
        """Wait until there are more entries than `height`; how many there are."""
