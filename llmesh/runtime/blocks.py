"""Blocks: a bundle's files in the pieces in which they travel, hashed, read and written.

Everything here blocks and is called in a thread.  Folders that are written to hold an unfinished
transfer; nothing in them counts before its digest has been compared.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import trio

from llmesh.core.manifest import BLOCK, Block, Manifest, ManifestFile, block_digest
from llmesh.core.model import BundleFile
from llmesh.errors import Conflict, ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.disk import disk_faults

__all__ = ["held_blocks", "keep_block", "make_manifest", "read_block", "wrong_file"]

_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_manifest(bundle: Bundle) -> Manifest:
    """Hash every block of a bundle.  Raises ValidationFailed where its files are no longer the same."""
    return Manifest(tuple(_entry(bundle.folder, file) for file in sorted(bundle.files)))


def read_block(folder: Path, manifest: Manifest, block: Block) -> bytes:
    """A block as the manifest has it.  Raises ValidationFailed where there is none or it was altered."""
    entry = next((entry for entry in manifest.files if entry.file.path == block.path), None)
    if entry is None or not 0 <= block.number < len(entry.digests):
        raise ValidationFailed(f"The model has no block {block.number} of {block.path[:200]!r}.")
    try:
        data = _read(folder / block.path, block.offset, entry.block_size(block.number))
    except OSError as error:
        raise ValidationFailed(f"{block.path} cannot be read: {error.strerror}.") from None
    if block_digest(data) != entry.digests[block.number]:
        raise ValidationFailed(f"{block.path} was altered.")
    return data


def keep_block(folder: Path, block: Block, data: bytes, digest: bytes) -> bytes:
    """Write a block to its place if it has that digest; the digest that it has.

    Raises Conflict where the disk is full or refuses.
    """
    found = block_digest(data)
    if found == digest:
        try:
            with disk_faults():
                _write(folder / block.path, block.offset, data)
        except OSError as error:
            raise Conflict(f"{block.path} cannot be written: {error.strerror}.") from None
    return found


def held_blocks(folder: Path, manifest: Manifest) -> set[Block]:
    """The blocks of a transfer that are there and right, after making place for all files.

    Raises Conflict where the disk has no room for the rest, OSError.
    """
    held, missing = set(), 0
    for entry in manifest.files:
        path = folder / entry.file.path
        with disk_faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(path, entry.file.size)
        for number, digest in enumerate(entry.digests):
            trio.from_thread.check_cancelled()
            block = Block(entry.file.path, number)
            size = entry.block_size(number)
            if block_digest(_read(path, block.offset, size)) == digest:
                held.add(block)
            else:
                missing += size
    if missing > (free := shutil.disk_usage(folder).free):
        raise Conflict(f"{missing} bytes are still to come and the disk has room for {free}.")
    return held


def wrong_file(folder: Path, manifest: Manifest) -> str | None:
    """The first file that has not the SHA-256 which the manifest, and so the ModelId, says."""
    for entry in manifest.files:
        digest = hashlib.sha256()
        for data in _pieces(folder / entry.file.path):
            digest.update(data)
        if digest.hexdigest() != entry.file.sha256:
            return entry.file.path
    return None


def _entry(folder: Path, file: BundleFile) -> ManifestFile:
    whole, digests, size = hashlib.sha256(), [], 0
    for data in _pieces(folder / file.path):
        whole.update(data)
        digests.append(block_digest(data))
        size += len(data)
    if (size, whole.hexdigest()) != (file.size, file.sha256):
        raise ValidationFailed(f"{file.path} was altered.")
    return ManifestFile(file, tuple(digests))


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK), "rb") as file:
            while data := file.read(BLOCK):
                trio.from_thread.check_cancelled()
                yield data
    except OSError as error:
        raise ValidationFailed(f"{path.name} cannot be read: {error.strerror}.") from None


def _read(path: Path, offset: int, size: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | _NO_LINK)
    try:
        return os.pread(handle, size, offset)
    finally:
        os.close(handle)


def _make(path: Path, size: int) -> None:
    """See to it that there is a file, not longer than it will be."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | _NO_LINK, 0o600)
    try:
        if os.fstat(handle).st_size > size:
            os.ftruncate(handle, size)
    finally:
        os.close(handle)


def _write(path: Path, offset: int, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | _NO_LINK, 0o600)
    try:
        while data:
            written = os.pwrite(handle, data, offset)
            offset, data = offset + written, data[written:]
    finally:
        os.close(handle)
