"""Backups of a ledger's file, taken while it is in use, and putting one where there is none."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path

import apsw

from llmesh.errors import Conflict, TransactionFailed, ValidationFailed
from llmesh.ledger.file import connect, load_genesis, sync_folder
from llmesh.ledger.local import verify_ledger

__all__ = ["restore", "write_backup"]

_MOVE = "Move it away, with what is named like it, and restore again."


def write_backup(path: Path, target: Path) -> None:
    """Copy a ledger as it is now to `target` in one step: the old file there, or the new one.

    Blocks.  Raises TransactionFailed where it cannot be written, ValidationFailed for what is no ledger.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with (
            closing(connect(path, apsw.SQLITE_OPEN_READONLY)) as db,
            closing(apsw.Connection(str(fresh))) as copy,
        ):
            _copy(db, copy)
        fresh.replace(target)
        sync_folder(target.parent)
    except (apsw.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TransactionFailed(
            f"The backup {target} could not be written: {reason}.",
            next_step="Choose another folder, or put that right, and make the backup again.",
        ) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def restore(backup: Path, path: Path) -> None:
    """Put a backup where no ledger is; one of the same swarm that is there and sound knows as much or more.

    Verifies the whole of both.  Blocks.  Raises ValidationFailed for a backup that is not sound, Conflict
    where another swarm's ledger, a damaged or an older one is in the way.  Then nothing is changed.
    """
    found = verify_ledger(backup)
    if not path.exists():
        write_backup(backup, path)
        return
    try:
        kept = verify_ledger(path)
    except ValidationFailed as error:
        raise Conflict(
            f"{error.message} Move it away, with what is named like it, and restore again."
        ) from None
    if kept.genesis.hash != found.genesis.hash or kept.head.sequence < found.head.sequence:
        raise Conflict(f"The ledger {path} is another swarm's or older than the backup. {_MOVE}")


def _copy(db: apsw.Connection, copy: apsw.Connection) -> None:
    db.execute("BEGIN")
    load_genesis(db)  # opens the snapshot, so that the node's writing never makes the copy start again
    with copy.backup("main", db, "main") as run:
        run.step(-1)
    copy.execute("PRAGMA journal_mode = DELETE")  # one file, which opens on a read-only disk too
