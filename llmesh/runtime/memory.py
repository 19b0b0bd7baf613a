"""Main memory: how much this machine has, and how much a process takes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

__all__ = ["machine_memory", "own_memory", "resident_memory"]


def machine_memory() -> int:
    """Bytes in all."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_memory(pid: int) -> int | None:
    """Bytes that a process has in memory now; None where the machine does not say."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def own_memory() -> int:
    """Bytes that this process has in memory, or where the machine does not say, has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux it begins at the parent's
    return resident_memory(os.getpid()) or (peak if sys.platform == "darwin" else peak * 1024)
