"""The swarm that this node belongs to: its account, its ledger, and the stake it bonds there.

A node that was not invited anywhere is a swarm of its own: it issues its own money and has all of it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from llmesh import crypto
from llmesh.core import operations
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.genesis import Genesis, SignedGenesis, sign_genesis
from llmesh.core.signer import Signer
from llmesh.errors import InsufficientBalance, MeshError
from llmesh.ledger.local import kept_genesis, open_local_ledger
from llmesh.ledger.log import LogLedger
from llmesh.mesh.teller import Teller
from llmesh.node.faults import StartRefused
from llmesh.node.home import Home

__all__ = ["LEDGER", "account_signer", "bond", "ledger_path", "open_ledger"]

LEDGER = "ledger.db"
ALLOCATION = Amount.parse(1_000_000)
"""What a lone node has at first."""
UNBONDING = 7 * 86_400
"""Seconds until a stake is free again."""


def ledger_path(folder: Path) -> Path:
    """The ledger's file in a data directory."""
    return folder / LEDGER


def account_signer(home: Home) -> Signer:
    """The account of this node.  Raises StartRefused for bytes that are no key."""
    try:
        return Signer(Address(crypto.address_of(home.account_seed)), crypto.signer(home.account_seed))
    except ValueError:
        raise StartRefused(
            f"The key {home.folder / 'account.key'} is no key: restore it from a copy."
        ) from None


@asynccontextmanager
async def open_ledger(home: Home, signer: Signer, min_stake: Amount) -> AsyncGenerator[LogLedger]:
    """The ledger of this node's swarm; at first one of its own, where providers bond `min_stake`.

    Raises StartRefused for a file that cannot be used.
    """
    path = ledger_path(home.folder)
    try:
        genesis = kept_genesis(path) or _lone_genesis(signer, min_stake)
    except MeshError as error:
        raise StartRefused(f"{error.message} {error.next_step}") from error
    sign = signer.sign if genesis.genesis.issuer == signer.address else None
    async with open_local_ledger(path, genesis, sign) as ledger:
        yield ledger


async def bond(teller: Teller, stake: Amount, bonded: Amount) -> None:
    """Bring the stake up to what was asked for.  Raises StartRefused where the balance does not do."""
    if stake <= bonded:
        return
    try:
        await teller.perform(operations.Bond(stake - bonded))
    except InsufficientBalance as error:
        raise StartRefused(f"The stake of {stake} MESH cannot be bonded: {error.message}") from None


def _lone_genesis(signer: Signer, min_stake: Amount) -> SignedGenesis:
    owner = signer.address
    genesis = Genesis(owner, ((owner, ALLOCATION),), min_stake, UNBONDING, int(time.time()))
    return sign_genesis(genesis, signer.sign)
