"""The ledger `local`: a swarm's log in a file of this node's, whole on every member.

Its clock is the issuer's: it stands while the issuer does not run, and is kept every few minutes so
that a restart costs a wait at most these.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import trio

from llmesh.core import typed
from llmesh.core.address import Address
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ledgerlog import Head, ledger_time, verify
from llmesh.core.typed import Chain, Sign, word
from llmesh.errors import Conflict, TransactionFailed, ValidationFailed
from llmesh.ledger.file import (
    LedgerFile,
    connect,
    load_books,
    load_clock,
    load_entries,
    load_genesis,
    start_file,
    trouble,
)
from llmesh.ledger.log import Issuer, LogLedger

log = logging.getLogger(__name__)

__all__ = [
    "TICK", "Verified", "kept_genesis", "kept_members", "open_local_ledger", "start_ledger", "verify_ledger",
]  # fmt: skip

TICK = 300.0
"""Seconds between two writings of the issuer's time."""

_DOMAIN = b"LLMESH Clock"
_CLOCK = typed.type_hash("Clock(uint64 at)")


@dataclass(frozen=True, slots=True)
class Verified:
    """What a ledger's file holds, all of it checked."""

    genesis: SignedGenesis
    head: Head
    accounts: int
    channels: int


def kept_genesis(path: Path) -> SignedGenesis | None:
    """What the ledger in a file began with; None where there is no file.  Blocks for the disk.

    Raises ValidationFailed for a file that is damaged or none, Conflict for a newer program's.
    """
    if not path.exists():
        return None
    with trouble(path):
        db = connect(path)
        try:
            return load_genesis(db)
        finally:
            db.close()


def kept_members(path: Path) -> set[Address]:
    """Every account that the ledger in a file knows.  Blocks, and raises, as `kept_genesis`."""
    with trouble(path):
        db = connect(path)
        try:
            return set(load_books(db, load_genesis(db))[0].accounts)
        finally:
            db.close()


def start_ledger(path: Path, genesis: SignedGenesis) -> None:
    """Make the file of a ledger without entries.  Blocks.  Raises ValidationFailed."""
    with trouble(path):
        start_file(path, genesis)


@asynccontextmanager
async def open_local_ledger(
    path: Path,
    genesis: SignedGenesis,
    sign: Sign | None = None,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncGenerator[LogLedger]:
    """Open the ledger that began with `genesis`, made if there is no file, for as long as the block lasts.

    With `sign`, the issuer's, operations are entered here; without it this is a member's copy.  `clock`
    counts seconds and never runs back.  Raises ValidationFailed for a file that is damaged, Conflict for
    another ledger's or a newer program's.
    """
    db = await trio.to_thread.run_sync(_open, path, genesis)
    file = LedgerFile(db)
    try:
        with trouble(path):
            books, head = load_books(db, genesis)
            if books.held != books.minted:
                raise ValidationFailed(f"The balances of the ledger {path} do not add up; {_REPAIR}")
            kept = load_clock(db)
        if sign is None:
            yield LogLedger(books, head, file)
            return
        started, since = max(head.at, kept[0] if kept else 0), clock()
        issuer = Issuer(sign, lambda: ledger_time(started, clock() - since))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_time, file, issuer, genesis.chain)
            try:
                yield LogLedger(books, head, file, issuer)
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):  # one checkpoint of the log, at most its size
            await trio.to_thread.run_sync(db.close)


_REPAIR = "fetch it again from other members, or restore it from a copy."


def verify_ledger(path: Path) -> Verified:
    """Rebuild everything in a ledger's file from its signed entries and compare.  Blocks.

    Raises ValidationFailed, naming it, for the first thing that is not as it was written.
    """
    with trouble(path):
        db = connect(path, apsw.SQLITE_OPEN_READONLY)
        try:
            db.execute("BEGIN")  # one snapshot, whatever its node writes meanwhile
            return _verify(db)
        finally:
            db.close()


def _open(path: Path, genesis: SignedGenesis) -> apsw.Connection:
    with trouble(path):
        if not path.exists():
            start_file(path, genesis)
        db = connect(path)
        try:
            for setting in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON"):
                db.execute(f"PRAGMA {setting}")
            if load_genesis(db).hash != genesis.hash:
                raise Conflict(f"{path} is the ledger of another swarm.")
        except BaseException:
            db.close()
            raise
    return db


async def _keep_time(file: LedgerFile, issuer: Issuer, chain: Chain) -> None:
    """Now and then, and once more when cancelled."""
    try:
        while True:
            await trio.sleep(TICK)
            await _save_time(file, issuer, chain)
    finally:
        with trio.CancelScope(shield=True):  # one row
            await _save_time(file, issuer, chain)


async def _save_time(file: LedgerFile, issuer: Issuer, chain: Chain) -> None:
    at = issuer.now()
    try:
        await file.save_clock(at, issuer.sign(_digest(at, chain)))
    except TransactionFailed as error:
        log.error("the ledger's time cannot be kept: %s", error.message)


def _digest(at: int, chain: Chain) -> bytes:
    return typed.digest(_DOMAIN, chain, typed.struct(_CLOCK, word(at)))


def _verify(db: apsw.Connection) -> Verified:
    faults = db.execute("PRAGMA integrity_check").get
    if faults != "ok":
        raise ValidationFailed(f"The ledger's file is damaged: {str(faults)[:200]}")
    genesis = load_genesis(db)
    books, head = verify(genesis, ((entry.payload, entry.signature) for entry in load_entries(db)))
    cached, _ = load_books(db, genesis)
    for name in ("minted", "accounts", "channels", "marks"):
        if getattr(books, name) != getattr(cached, name):
            raise ValidationFailed(f"The ledger's {name} are not what its entries lead to.")
    _verify_clock(load_clock(db), head, genesis.chain)
    return Verified(genesis, head, len(books.accounts), len(books.channels))


def _verify_clock(kept: tuple[int, bytes] | None, head: Head, chain: Chain) -> None:
    if kept is None:
        return
    at, signature = kept
    if typed.signer_of(_digest(at, chain), signature, "the ledger's time") != chain.contract:
        raise ValidationFailed("The ledger's time is not signed by its issuer.")
