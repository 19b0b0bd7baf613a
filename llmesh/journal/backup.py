"""Backups of a journal, taken while it is in use, and putting one back when no node runs.

A backup is a journal like any other, in one file.  An older one forgets what came after it:
vouchers not yet claimed, receipts, that a key was revoked.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import apsw

from llmesh.core.ids import PeerId
from llmesh.errors import Conflict, ValidationFailed
from llmesh.journal.faults import DISK_FAULTS, failed_backup, opening, reason
from llmesh.journal.schema import begin_anew, check_identity, count_commits

__all__ = ["check_integrity", "restore", "verify_journal", "write_backup"]

PAGES = 256
"""Pages copied between two looks for a cancel: 1 MiB."""

_COMPANIONS = ("-wal", "-shm")


def write_backup(db: apsw.Connection, path: Path, check_cancelled: Callable[[], None]) -> None:
    """Copy an open journal, as it is now, to `path` in one step: the old file there, or the new one.

    `check_cancelled` is called now and then and may raise.  Blocks.  Raises TransactionFailed.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(apsw.Connection(str(fresh))) as copy:
            _copy(db, copy, check_cancelled)
        fresh.replace(path)
        _sync_folder(path.parent)
    except DISK_FAULTS as error:
        raise failed_backup(path, reason(error)) from error
    except OSError as error:
        raise failed_backup(path, str(error.strerror)) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def restore(backup: Path, path: Path, owner: PeerId) -> Path | None:
    """Put a backup in the place of the journal; where the old one is kept, if there was one.

    What it takes up is not what the node was: see `begin_anew`.  The caller holds the data directory, and
    does it again where it was interrupted.  Blocks.  Raises
    ValidationFailed for a backup that is damaged or none; Conflict if backup or journal are another
    node's or a newer program's, or if the journal has commits that came after the backup.  Then nothing
    is changed.
    """
    with opening(backup), closing(apsw.Connection(str(backup), flags=apsw.SQLITE_OPEN_READONLY)) as source:
        if not check_identity(source, owner):
            raise ValidationFailed("It is empty.")
        check_integrity(source)
        commits = count_commits(source)
    if path.exists():
        _check_replaceable(path, owner, commits)
    fresh = path.with_name(f"{path.name}.restored")
    with opening(backup), closing(apsw.Connection(str(backup), flags=apsw.SQLITE_OPEN_READONLY)) as source:
        write_backup(source, fresh, lambda: None)
    with opening(fresh), closing(apsw.Connection(str(fresh))) as copy:
        # In memory, for a log left by a crash in here would be played into the copy of the next try.
        copy.execute("PRAGMA fullfsync = ON; PRAGMA synchronous = FULL; PRAGMA journal_mode = MEMORY")
        begin_anew(copy, owner, secrets.token_bytes(32))
    kept = _keep(path) if path.exists() else None
    fresh.replace(path)
    _sync_folder(path.parent)
    return kept


def verify_journal(path: Path, owner: PeerId) -> int:
    """Read all of a journal, also while its node runs; how many commits it has seen.  Blocks.

    Raises ValidationFailed for a file that is damaged or none, Conflict for another node's or a newer
    program's.
    """
    with opening(path), closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        if not check_identity(db, owner):
            raise ValidationFailed("It is empty.")
        check_integrity(db)
        return count_commits(db)


def check_integrity(db: apsw.Connection) -> None:
    """Read the whole file.  Raises ValidationFailed with the first of what is wrong."""
    found = next(iter(db.execute("PRAGMA integrity_check(1)")))[0]
    if found != "ok":
        raise ValidationFailed(f"It is damaged: {found}.")


def _copy(db: apsw.Connection, copy: apsw.Connection, check_cancelled: Callable[[], None]) -> None:
    count_commits(db)  # opens the caller's snapshot, so that commits never make the copy start again
    with copy.backup("main", db, "main") as run:
        while not run.step(PAGES):
            check_cancelled()
    copy.execute("PRAGMA journal_mode = DELETE")  # one file, which opens on a read-only disk too


def _check_replaceable(path: Path, owner: PeerId, commits: int) -> None:
    """A damaged journal is what backups are for; a sound one must not know more than the backup.

    It is opened read-only: whoever may write throws away the log that lies beside a damaged file.
    """
    with opening(path):
        try:
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
                later = count_commits(db) - commits if check_identity(db, owner) else 0
        except (apsw.CorruptError, apsw.NotADBError):
            return
    if later > 0:
        raise Conflict(
            f"The journal {path} has {later} commits that the backup does not know.",
            next_step="Keep it as it is, or move it away first if they are to be forgotten.",
        )


def _keep(path: Path) -> Path:
    """Give the old file a second name, its log first: a log must never meet another database."""
    kept = next(name for n in count(1) if not (name := path.with_name(f"{path.name}.replaced-{n}")).exists())
    for companion in _COMPANIONS:
        with suppress(FileNotFoundError):
            path.with_name(path.name + companion).replace(kept.with_name(kept.name + companion))
    os.link(path, kept)
    return kept


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
