"""The journal as a whole: opened, written and read.

The data directory's lock keeps other nodes away; nothing here takes one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import apsw
import trio

from llmesh.core.ids import PeerId
from llmesh.journal.backup import write_backup
from llmesh.journal.faults import opening
from llmesh.journal.readers import Readers
from llmesh.journal.schema import check_identity, migrate
from llmesh.journal.writer import Change, Writer

__all__ = ["Journal", "open_journal"]

PATIENCE_MS = 2_000
"""How long a commit waits for another program that has locked the file."""

T = TypeVar("T")
P = ParamSpec("P")


class Journal:
    """An open journal; only `open_journal` makes one, because it runs the writer."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def commit(self, *changes: Change) -> None:
        """Make all changes durable, in this order, or none; returns once they are on the disk.

        Commits take effect in the order of the calls.  Raises what a change raised (most often
        Conflict), or TransactionFailed if the disk did not take it; then nothing of it is there.
        Cancelled means that nothing was written: once queued, a commit is carried through and the
        cancel is noticed after it.  With `CAPACITY` commits queued, callers wait in line.
        """
        await self._writer.commit(changes)

    async def read(
        self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a query of this package finds, in one snapshot of what is durable.

        It runs in a thread: `await journal.read(find_channel, Side.PAYER, channel)`.  Raises
        TransactionFailed where the file cannot be read.  A cancel stops the query.
        """
        return await self._readers.read(query, *args, **kwargs)

    async def backup(self, path: Path) -> None:
        """Write a copy of what is durable now, while commits go on; it replaces the file at `path`.

        Raises TransactionFailed.  A cancel leaves nothing behind.
        """
        await self.read(write_backup, path, trio.from_thread.check_cancelled)


@asynccontextmanager
async def open_journal(path: Path, owner: PeerId) -> AsyncIterator[Journal]:
    """Open the journal of node `owner`, made if it is not there, for as long as the block lasts.

    Raises ValidationFailed for a file that is damaged, foreign or out of reach, and Conflict for the
    journal of another node or of a newer program; such a file is not touched.  Leaving, also by a
    cancel, first writes all that is queued.
    """
    with opening(path):
        db = await trio.to_thread.run_sync(_open, path, owner)
    writer, readers = Writer(db), Readers(path)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            try:
                yield Journal(writer, readers)
            finally:
                writer.close()
    finally:
        readers.close()
        with trio.CancelScope(shield=True):  # one checkpoint of the log, at most its size
            await trio.to_thread.run_sync(db.close)


def _open(path: Path, owner: PeerId) -> apsw.Connection:
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.set_busy_timeout(PATIENCE_MS)
        if db.readonly("main"):
            raise apsw.ReadOnlyError
        version = check_identity(db, owner)
        for setting in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON", "trusted_schema = OFF"):
            db.execute(f"PRAGMA {setting}")
        migrate(db, version, owner)
    except BaseException:
        db.close()
        raise
    return db
