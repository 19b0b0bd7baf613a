"""The ledger's file: its genesis and entries as they were signed, and the cells they lead to as a cache.

SQLite through apsw, WAL, `synchronous=FULL`.  The functions block; LedgerFile calls them in threads,
one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import apsw
import trio

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, Books, Changes, LedgerChannel
from llmesh.core.channel import Deposit
from llmesh.core.encoding import canonical_json, parse_canonical_json
from llmesh.core.genesis import SignedGenesis, read_genesis
from llmesh.core.ledgerlog import Head, SignedEntry, first_head, read_entry
from llmesh.core.operations import config_from_json, config_to_json
from llmesh.core.voucher import ChannelId
from llmesh.errors import Conflict, TransactionFailed, ValidationFailed

__all__ = [
    "LedgerFile", "connect", "entry_in", "load_books", "load_clock", "load_entries", "load_genesis",
    "save_clock", "start_file", "sync_folder", "trouble",
]  # fmt: skip

APPLICATION = 0x4C4C4D4C
"""SQLite's application id of a ledger: the letters LLML."""
VERSION = 1
_PATIENCE_MS = 2_000

_SCHEMA = """
CREATE TABLE genesis (
    one INTEGER PRIMARY KEY CHECK (one = 1), payload BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY, actor BLOB NOT NULL, nonce INTEGER NOT NULL,
    payload BLOB NOT NULL, signature BLOB NOT NULL, UNIQUE (actor, nonce)
) STRICT;
CREATE TABLE clock (
    one INTEGER PRIMARY KEY CHECK (one = 1), at INTEGER NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE minted (one INTEGER PRIMARY KEY CHECK (one = 1), micro TEXT NOT NULL) STRICT;
CREATE TABLE account (owner BLOB PRIMARY KEY, figures TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE channel (
    id BLOB PRIMARY KEY, config BLOB NOT NULL, figures TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE mark (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
"""

T = TypeVar("T")


class LedgerFile:
    """An open ledger file as a store."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._free = trio.Lock()

    async def write(self, signed: SignedEntry, changes: Changes) -> None:
        """Make an entry and its changes durable in one transaction.  Raises TransactionFailed."""
        await self._run(lambda: _write(self._db, signed, changes))

    async def find(self, actor: Address, nonce: int) -> SignedEntry | None:
        """The entry of an actor's so-many-th operation."""
        query = "SELECT payload, signature FROM entry WHERE actor = ? AND nonce = ?"
        found = await self._run(lambda: self._db.execute(query, (actor, nonce)).fetchall())
        return entry_in(*found[0]) if found else None

    async def entries(self, after: int, limit: int) -> Sequence[SignedEntry]:
        """Entries above a number, in their order."""
        query = "SELECT payload, signature FROM entry WHERE sequence > ? ORDER BY sequence LIMIT ?"
        found = await self._run(lambda: self._db.execute(query, (after, limit)).fetchall())
        return [entry_in(payload, signature) for payload, signature in found]

    async def save_clock(self, at: int, signature: bytes) -> None:
        """Keep the issuer's time.  Raises TransactionFailed."""
        await self._run(lambda: save_clock(self._db, at, signature))

    async def _run(self, work: Callable[[], T]) -> T:
        """In a thread, carried through once begun: a cancel is noticed before it, or later."""
        async with self._free:
            try:
                return await trio.to_thread.run_sync(work)
            except apsw.Error as error:
                raise TransactionFailed(f"The ledger's file could not be used: {error}.") from error


@contextmanager
def trouble(path: Path) -> Iterator[None]:
    """Name the file in whatever is wrong with it: ValidationFailed."""
    try:
        yield
    except apsw.Error as error:
        raise ValidationFailed(f"The ledger {path} cannot be used: {error}.") from error
    except OSError as error:
        raise ValidationFailed(f"The ledger {path} cannot be used: {error.strerror}.") from error


def connect(path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE) -> apsw.Connection:
    """Open a file that is there.

    Raises apsw.Error, ValidationFailed for another program's file, Conflict for a newer program's.
    """
    db = apsw.Connection(str(path), flags=flags)
    try:
        db.set_busy_timeout(_PATIENCE_MS)
        db.execute("PRAGMA trusted_schema = OFF")
        version = db.execute("PRAGMA user_version").get
        if db.execute("PRAGMA application_id").get != APPLICATION:
            raise ValidationFailed(f"{path} is not the ledger of an LLMESH node.")
        if version > VERSION:
            raise Conflict(
                f"The ledger {path} was written by a newer LLMESH.",
                next_step="Install that version or a later one.",
            )
    except BaseException:
        db.close()
        raise
    return db


def start_file(path: Path, genesis: SignedGenesis) -> None:
    """Make a new file that holds a genesis and its books; whole or, after a crash, not there."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = apsw.Connection(str(fresh), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        with db:
            db.execute(_SCHEMA)
            db.execute("INSERT INTO genesis VALUES (1, ?, ?)", (genesis.payload, genesis.signature))
            first = Books(genesis)
            _write_cells(db, Changes(first.accounts, {}, frozenset(), first.minted))
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
    finally:
        db.close()
    fresh.replace(path)
    sync_folder(path.parent)


def load_genesis(db: apsw.Connection) -> SignedGenesis:
    """What the ledger began with.  Raises ValidationFailed."""
    found = db.execute("SELECT payload, signature FROM genesis").fetchall()
    if not found:
        raise ValidationFailed("The ledger has lost its genesis.")
    payload, signature = found[0]
    return read_genesis(_bytes(payload), _bytes(signature))


def entry_in(payload: object, signature: object) -> SignedEntry:
    """The entry of a row.  Raises ValidationFailed for a row that no longer holds one."""
    return read_entry(_bytes(payload), _bytes(signature))


def load_entries(db: apsw.Connection) -> Iterator[SignedEntry]:
    """All entries, each in the place that its row says.  Raises ValidationFailed."""
    rows = db.execute("SELECT sequence, actor, nonce, payload, signature FROM entry ORDER BY sequence")
    for sequence, actor, nonce, payload, signature in rows:
        signed = entry_in(payload, signature)
        operation = signed.entry.operation
        if (sequence, actor, nonce) != (signed.entry.sequence, operation.actor, operation.nonce):
            raise ValidationFailed(f"Entry {signed.entry.sequence} of the log is in a wrong place.")
        yield signed


def load_books(db: apsw.Connection, genesis: SignedGenesis) -> tuple[Books, Head]:
    """The books as the cache has them, and the log's head.  Raises ValidationFailed for nonsense."""
    books = Books(genesis)
    try:
        books.minted = Amount(int(db.execute("SELECT micro FROM minted").get))
        books.accounts = {
            Address(owner): _read_account(text) for owner, text in db.execute("SELECT * FROM account")
        }
        books.channels = {
            ChannelId(id): _read_channel(_bytes(config), text)
            for id, config, text in db.execute("SELECT * FROM channel")
        }
    except (ValueError, TypeError, AttributeError) as error:  # cells of other types than were written
        raise ValidationFailed(f"The ledger's balances are damaged: {error}.") from None
    books.marks = {mark for (mark,) in db.execute("SELECT id FROM mark")}
    last = db.execute("SELECT payload, signature FROM entry ORDER BY sequence DESC LIMIT 1").fetchall()
    return books, entry_in(*last[0]).head if last else first_head(genesis)


def load_clock(db: apsw.Connection) -> tuple[int, bytes] | None:
    """The issuer's time as it was last kept, signed by it."""
    for at, signature in db.execute("SELECT at, signature FROM clock"):
        if not isinstance(at, int):
            raise ValidationFailed("The ledger's time is no longer one.")
        return at, _bytes(signature)
    return None


def save_clock(db: apsw.Connection, at: int, signature: bytes) -> None:
    """Keep the issuer's time."""
    db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?)", (at, signature))


def _write(db: apsw.Connection, signed: SignedEntry, changes: Changes) -> None:
    """After a failed commit the next one is written over what may stand of it in the file."""
    entry, operation = signed.entry, signed.entry.operation
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
            (entry.sequence, operation.actor, operation.nonce, signed.payload, signed.signature),
        )
        _write_cells(db, changes)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _write_cells(db: apsw.Connection, changes: Changes) -> None:
    db.execute("INSERT OR REPLACE INTO minted VALUES (1, ?)", (str(changes.minted.micro),))
    db.executemany(
        "INSERT OR REPLACE INTO account VALUES (?, ?)",
        [(owner, _figures(account)) for owner, account in changes.accounts.items()],
    )
    db.executemany(
        "INSERT OR REPLACE INTO channel VALUES (?, ?, ?)",
        [
            (id, canonical_json(config_to_json(cell.config)), f"{_figures(cell.deposit)} {cell.free_at}")
            for id, cell in changes.channels.items()
        ],
    )
    db.executemany("INSERT INTO mark VALUES (?)", [(mark,) for mark in sorted(changes.used)])


def _figures(cell: Account | Deposit) -> str:
    values = (getattr(cell, field.name) for field in fields(cell))
    return " ".join(str(value.micro if isinstance(value, Amount) else value) for value in values)


def _read_account(text: str) -> Account:
    balance, stake, unbonding, free_at, claimed, settled, nonce = map(int, text.split())
    free, bonded, leaving = Amount(balance), Amount(stake), Amount(unbonding)
    return Account(free, bonded, leaving, free_at, Amount(claimed), Amount(settled), nonce)


def _read_channel(config: bytes, text: str) -> LedgerChannel:
    *amounts, free_at = map(int, text.split())
    deposit = Deposit(*map(Amount, amounts))
    return LedgerChannel(config_from_json(parse_canonical_json(config)), deposit, free_at)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValidationFailed("A record of the ledger is no longer one.")
    return value


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
