"""What disks do to writers: a full one is a fault with a name."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from llmesh.errors import Conflict

__all__ = ["disk_faults"]


@contextmanager
def disk_faults() -> Iterator[None]:
    """Turn "no space left" into a Conflict that says what to do; other faults pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Conflict("The disk is full; free some space or remove models from the store.") from None
        raise
