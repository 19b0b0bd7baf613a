"""Incoming: a model that is being brought to the store as one file, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from llmesh.runtime.disk import disk_faults

__all__ = ["Incoming"]

# Of zip, gzip, bzip2 and xz; a bare tar has its own in the middle of the first block.
_PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_TAR = slice(257, 262)
_HEAD = 512


class Incoming:
    """One file in a folder of its own; only `Store.incoming` makes one.

    `admit` is told how many bytes are about to come and raises TooLarge where they do not fit.
    """

    def __init__(self, folder: Path, admit: Callable[[int], None]) -> None:
        self._folder = folder
        self._admit = admit
        self._head = b""

    async def write(self, piece: bytes) -> None:
        """Append.  Raises TooLarge over the store's quota, Conflict where the disk is full."""
        self._admit(len(piece))
        if len(self._head) < _HEAD:
            self._head += piece[:_HEAD]
        with disk_faults():
            await trio.to_thread.run_sync(_append, self._folder / "incoming", piece)

    async def finish(self) -> Path:
        """The whole file, under a name that tells the store what it is: an `.onnx` or an archive.

        Raises Conflict where the disk is full.
        """
        packed = self._head.startswith(_PACKED) or self._head[_TAR] == b"ustar"
        path = self._folder / ("bundle" if packed else "model.onnx")
        with disk_faults():
            await trio.to_thread.run_sync(_rename, self._folder / "incoming", path)
        return path


def _append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)


def _rename(path: Path, target: Path) -> None:
    path.touch()  # nothing may have come
    path.rename(target)
