"""SQLite's errors in the words of our table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from llmesh.errors import MeshError, TransactionFailed, ValidationFailed

__all__ = ["DISK_FAULTS", "failed_backup", "failed_write", "opening", "reading", "reason"]

DISK_FAULTS = (
    apsw.BusyError, apsw.CantOpenError, apsw.CorruptError, apsw.FullError, apsw.IOError, apsw.InterruptError,
    apsw.LockedError, apsw.NoMemError, apsw.NotADBError, apsw.PermissionsError, apsw.ProtocolError,
    apsw.ReadOnlyError,
)  # fmt: skip
"""What the file and the machine do to us; any other error of SQLite is a bug of ours."""

_REASONS: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, "the disk is full"),
    (apsw.ReadOnlyError, "the file or its disk is read-only"),
    (apsw.PermissionsError, "this user may not use it"),
    (apsw.CantOpenError, "this user may not use it, or its folder is missing"),
    (apsw.CorruptError, "the file is damaged; restore it from a backup"),
    (apsw.NotADBError, "the file is damaged or no database; restore it from a backup"),
    (apsw.BusyError, "another program holds it"),
    (apsw.NoMemError, "memory ran out"),
    (apsw.IOError, "the disk reported an error"),
)


def failed_write(error: apsw.Error) -> TransactionFailed:
    """What a caller is told whose commit did not become durable."""
    return TransactionFailed(
        f"The journal could not be written: {reason(error)}.",
        next_step="Nothing was done; put that right on the node's machine, then try again.",
    )


def failed_backup(path: Path, why: str) -> TransactionFailed:
    """What whoever makes a backup is told where it cannot be written."""
    return TransactionFailed(
        f"The backup {path} could not be written: {why}.",
        next_step="Choose another folder, or put that right, and make the backup again.",
    )


@contextmanager
def reading() -> Iterator[None]:
    """Turn the faults of a read into TransactionFailed."""
    try:
        yield
    except DISK_FAULTS as error:
        raise TransactionFailed(f"The journal could not be read: {reason(error)}.") from error


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Name the file in whatever is wrong with it: ValidationFailed for the disk's own faults."""
    try:
        yield
    except DISK_FAULTS as error:
        raise _unopened(path, reason(error)) from error
    except OSError as error:
        raise _unopened(path, str(error.strerror)) from error
    except MeshError as error:
        message = f"The journal {path} cannot be opened. {error.message}"
        raise type(error)(message, next_step=error.next_step) from None


def _unopened(path: Path, why: str) -> ValidationFailed:
    return ValidationFailed(
        f"The journal {path} cannot be opened: {why}.", next_step="Put that right, then try again."
    )


def reason(error: apsw.Error) -> str:
    """Why, as the rest of a sentence."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))
