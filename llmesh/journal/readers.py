"""Readers: read-only connections of their own, which never wait for the writer nor hold it up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import apsw
import trio

from llmesh.journal.faults import reading

__all__ = ["READERS", "Readers"]

READERS = 4
"""Most reads at a time; further callers wait, first come first served."""

_PATIENCE_MS = 2_000
_CANCEL_CHECK = 50_000  # steps of SQLite's machine between two looks for a cancel

T = TypeVar("T")
P = ParamSpec("P")


class Readers:
    """A few read-only connections to the file, opened when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[apsw.Connection] = []
        self._limit = trio.CapacityLimiter(READERS)
        self._closed = False

    async def read(
        self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `query` finds, called in a thread within one snapshot of what is durable.

        Raises TransactionFailed where the file cannot be read.  A cancel stops the query.
        """
        async with self._limit:
            with reading():
                db = self._idle.pop() if self._idle else await trio.to_thread.run_sync(self._open)
                try:
                    return await trio.to_thread.run_sync(lambda: _in_snapshot(db, query, *args, **kwargs))
                finally:
                    self._give_back(db)

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> apsw.Connection:
        db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(_PATIENCE_MS)
        db.set_progress_handler(_stop_if_cancelled, _CANCEL_CHECK)
        return db

    def _give_back(self, db: apsw.Connection) -> None:
        if self._closed:
            db.close()
        else:
            self._idle.append(db)


def _stop_if_cancelled() -> bool:
    trio.from_thread.check_cancelled()
    return False


def _in_snapshot(
    db: apsw.Connection,
    query: Callable[Concatenate[apsw.Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    db.execute("BEGIN")
    try:
        return query(db, *args, **kwargs)
    finally:
        db.execute("ROLLBACK")
