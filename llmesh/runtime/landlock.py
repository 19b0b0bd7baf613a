"""Landlock for the worker: files it may read, nothing to write, no TCP (Linux 5.13 and later).

Three system calls by ctypes (Documentation/userspace-api/landlock.rst).  The restriction holds for
the calling thread and those it makes, so it must come before any other thread exists.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["abi", "restrict"]

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
# How many file rights each ABI knows (handled ones that no rule grants are refused).
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_FILE_RIGHTS = 16
_TCP_RIGHTS = 0b11


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}:
        return 0
    return max(0, _call(_CREATE, None, 0, _VERSION_FLAG))


def restrict(readable: Sequence[Path]) -> None:
    """Leave this thread and its children nothing but reading these files and folders.

    Paths that do not exist are passed over.  Raises OSError where the kernel refuses.
    """
    version = abi()
    files = (1 << _FILE_RIGHTS.get(version, _LATEST_FILE_RIGHTS)) - 1
    attributes = struct.pack("=QQ", files, _TCP_RIGHTS)[: 16 if version >= 4 else 8]
    ruleset = _checked(_CREATE, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path)
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refused no_new_privs")
        _checked(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _READ_FILE | (_READ_DIRECTORY if path.is_dir() else 0)
        _checked(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)


def _call(number: int, *arguments: int | bytes | None) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    return result


def _checked(number: int, *arguments: int | bytes | None) -> int:
    result = _call(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "the kernel refused a Landlock call")
    return result
