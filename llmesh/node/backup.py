"""Backups of what a node cannot do without: its two keys, its journal and its swarm's ledger.

The models in its store are fetched or deployed again; everything else is made anew at a start.
"""

from __future__ import annotations

from pathlib import Path

import trio

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.ids import PeerId
from llmesh.errors import Conflict, TransactionFailed, ValidationFailed
from llmesh.journal import backup as journals
from llmesh.journal.faults import failed_backup
from llmesh.journal.open import Journal
from llmesh.ledger import backup as ledgers
from llmesh.ledger.local import kept_genesis, kept_members
from llmesh.node.files import write_durably
from llmesh.node.home import ACCOUNT, IDENTITY, JOURNAL, LEDGER, Home, held
from llmesh.node.identity import load_seed

__all__ = ["back_up", "restore"]

_KEYS = (IDENTITY, ACCOUNT)


async def back_up(home: Home, journal: Journal, folder: Path) -> tuple[str, ...]:
    """Write keys, journal and ledger into a folder, made if it is not there; the names of the files.

    The ledger after the journal: what the journal calls done is in it then.

    An earlier backup of the same node there is replaced, file by file in one step each.  Raises
    Conflict where the folder holds something else, TransactionFailed where it cannot be written.
    """
    await trio.to_thread.run_sync(_prepare, home, folder)
    await journal.backup(folder / JOURNAL)
    if has_ledger := (home.folder / LEDGER).exists():
        await trio.to_thread.run_sync(ledgers.write_backup, home.folder / LEDGER, folder / LEDGER)
    await trio.to_thread.run_sync(_copy_keys, home, folder)
    return (*_KEYS, JOURNAL, *([LEDGER] if has_ledger else []))


def restore(backup: Path, folder: Path, *, latest: bool = False) -> tuple[PeerId, Path | None]:
    """Put a backup into a data directory that no node holds; whose it is, and where the old journal went.

    An issuer's ledger takes its owner's word that nobody has a later one: `latest`.  The keys come last,
    so that an interrupted restore is no node yet; do it again then.  Raises ValidationFailed for what is
    no whole backup, Conflict where the folder is another node's, what is there knows more than the backup
    or an issuer's members may, StartRefused where a node runs.  Then nothing is changed.
    """
    if missing := [name for name in (*_KEYS, JOURNAL) if not (backup / name).is_file()]:
        raise ValidationFailed(f"{backup} is no backup of a node: {', '.join(missing)} is missing.")
    owner = PeerId(crypto.identity_of(load_seed(backup / IDENTITY)))
    load_seed(backup / ACCOUNT)
    with held(folder):
        for name in _KEYS:
            _check_same(backup / name, folder / name)
        if (backup / LEDGER).exists():
            if not latest and not (folder / LEDGER).exists():
                _refuse_issuer(backup)
            ledgers.restore(backup / LEDGER, folder / LEDGER)
        kept = journals.restore(backup / JOURNAL, folder / JOURNAL, owner)
        for name in _KEYS:
            write_durably(folder / name, (backup / name).read_bytes())
    return owner, kept


def _refuse_issuer(backup: Path) -> None:
    """Raise Conflict for the ledger of an issuer whose members may have more of it."""
    path, own = backup / LEDGER, Address(crypto.address_of(load_seed(backup / ACCOUNT)))
    genesis = kept_genesis(path)
    if genesis is not None and genesis.genesis.issuer == own and kept_members(path) - {own}:
        raise Conflict(
            "This node issues its swarm's money. Where members have more of the ledger than this backup,"
            " what it enters next contradicts theirs, and they follow it no longer.",
            next_step=f"Put the ledger.db of a member's `llmesh backup` into {backup}, the one with the most"
            " entries; then restore with --latest-ledger. So too if nobody has more.",
        )


def _prepare(home: Home, folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir()} - {*_KEYS, JOURNAL, LEDGER}
    except OSError as error:
        raise _unwritten(folder, error) from None
    if others:
        raise Conflict(f"{folder} holds other files, such as {min(others)}; give the backup its own folder.")
    for name in _KEYS:
        _check_same(home.folder / name, folder / name)


def _copy_keys(home: Home, folder: Path) -> None:
    try:
        for name in _KEYS:
            write_durably(folder / name, (home.folder / name).read_bytes())
    except OSError as error:
        raise _unwritten(folder, error) from None


def _check_same(key: Path, there: Path) -> None:
    if there.exists() and there.read_bytes() != key.read_bytes():
        raise Conflict(f"{there} is the key of another node; choose another folder.")


def _unwritten(folder: Path, error: OSError) -> TransactionFailed:
    return failed_backup(folder, str(error.strerror))
