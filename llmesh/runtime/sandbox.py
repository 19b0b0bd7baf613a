"""What a worker takes away from itself before it opens a model it does not trust.

Memory and file limits everywhere; on Linux also a seccomp filter (no network, no new programs) and
Landlock (read its bundle and the libraries, write nothing).  What the machine lacks is left out
and reported, never assumed: the node shows the level and can refuse to run below one.
"""

from __future__ import annotations

import enum
import os
import resource
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from llmesh.runtime import landlock, seccomp

__all__ = ["SandboxLevel", "enter"]

OPEN_FILES = 128


class SandboxLevel(enum.IntEnum):
    """How far a worker is locked in; each level includes those below."""

    NONE = 0
    LIMITS = 1  # memory, files written, core dumps
    FILTERED = 2  # and no network, no other programs (seccomp)
    CONFINED = 3  # and no file but its bundle and the libraries (Landlock)


def enter(readable: Sequence[Path], memory: int) -> SandboxLevel:
    """Lock this process in, for good; says how far that went.

    `readable` are the bundle's files and folders, `memory` the most address space in bytes.  To be
    called before any second thread exists and before the model's libraries are loaded.
    """
    level = SandboxLevel.LIMITS if _set_limits(memory) else SandboxLevel.NONE
    confined = _confine([*readable, *_libraries()])
    if not level or not seccomp.available():
        return level
    try:
        seccomp.load()
    except OSError:
        return level
    return SandboxLevel.CONFINED if confined else SandboxLevel.FILTERED


def _set_limits(memory: int) -> bool:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_AS: memory,
    }
    try:
        for kind, value in wanted.items():
            resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):  # macOS knows RLIMIT_AS but does not take it
        return False
    return True


def _confine(readable: Sequence[Path]) -> bool:
    if not landlock.abi():
        return False
    try:
        landlock.restrict(readable)
    except OSError:
        return False
    return True


def _libraries() -> list[Path]:
    """What Python and the runtime read of their own: code, and the description of the processor."""
    own = [Path(p) for p in sys.path if p]
    python = [Path(sys.prefix), Path(sys.base_prefix), *(Path(p) for p in sysconfig.get_paths().values())]
    system = [Path(p) for p in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")]
    machine = [
        Path(p) for p in ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices", "/sys/bus/pci", "/dev/urandom")
    ]
    return [*own, *python, *system, *machine, Path(f"/proc/{os.getpid()}")]
