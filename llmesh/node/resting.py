"""A node that does not run: its files, opened for as long as its owner asks something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmesh.core.ids import ModelId
from llmesh.errors import Conflict
from llmesh.gateway.keys import Keys, open_keys
from llmesh.gateway.wallet import Wallet
from llmesh.journal.open import open_journal
from llmesh.ledger.local import kept_genesis, open_local_ledger
from llmesh.node.home import JOURNAL, LEDGER, Home
from llmesh.node.swarm import account_signer

__all__ = ["open_resting"]


@asynccontextmanager
async def open_resting(home: Home) -> AsyncIterator[tuple[Keys, Wallet]]:
    """Keys and wallet of a held data directory; the ledger is only read.

    Raises Conflict for a node that was never started, and as the journal and the ledger do.
    """
    path = home.folder / LEDGER
    genesis = kept_genesis(path)
    if genesis is None:
        raise Conflict(f"The node in {home.folder} has no ledger yet; start it once.")
    async with (
        open_journal(home.folder / JOURNAL, home.peer_id) as journal,
        open_keys(journal, home.key_secret) as keys,
        open_local_ledger(path, genesis, None) as ledger,
    ):
        yield keys, Wallet(journal, ledger, account_signer(home).address, _no_name)


def _no_name(model: ModelId) -> str:
    """Offers are known to a running node only."""
    return ""
