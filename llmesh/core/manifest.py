"""Manifest: all that is needed to fetch a bundle from strangers and check it block by block.

The files' own (path, size, SHA-256) must hash to the ModelId, so a manifest proves itself that
far.  The block digests below them do not: whoever gave them is found out when a whole file does
not match, and pays with its standing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from llmesh.core.ids import ModelId
from llmesh.core.model import BundleFile, model_id_of
from llmesh.crypto import blake3_of
from llmesh.errors import TooLarge, ValidationFailed

__all__ = [
    "BLOCK", "DIGEST", "MAX_FILES", "MAX_PATH", "Block", "Manifest", "ManifestFile", "block_digest",
    "check_manifest",
]  # fmt: skip

BLOCK = 1 << 20
"""Bytes of a block; the last one of a file may be shorter."""

DIGEST = 32
"""Bytes of a digest, a file's SHA-256 or a block's BLAKE3."""

MAX_FILES = 2_000
MAX_PATH = 1024
"""Characters of a path inside a bundle."""

MAX_SIZE = 64 << 30
"""Bytes of all files of a model."""

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, order=True, slots=True)
class Block:
    """A piece of one file: `number` counts from 0 within it."""

    path: str
    number: int

    @property
    def offset(self) -> int:
        """Where it starts in its file."""
        return self.number * BLOCK


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a bundle and the BLAKE3 of each of its blocks, in order."""

    file: BundleFile
    digests: tuple[bytes, ...]

    def block_size(self, number: int) -> int:
        """Bytes of a block of this file."""
        return min(BLOCK, self.file.size - number * BLOCK)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files of one model, sorted by path."""

    files: tuple[ManifestFile, ...]

    @property
    def model_id(self) -> ModelId:
        """The id that these files have."""
        return model_id_of(entry.file for entry in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.file.size for entry in self.files)

    def blocks(self) -> Iterator[Block]:
        """Every block, in order."""
        for entry in self.files:
            for number in range(len(entry.digests)):
                yield Block(entry.file.path, number)


def block_digest(data: bytes) -> bytes:
    """BLAKE3 of a block's bytes: every block is hashed by its giver, on its way, and by its taker."""
    return blake3_of([data])


def check_manifest(manifest: Manifest, wanted: ModelId, max_size: int = MAX_SIZE) -> None:
    """Refuse a manifest that is not of this model, names unsafe paths, or is over `max_size` bytes.

    Raises ValidationFailed and TooLarge.
    """
    if not 0 < len(manifest.files) <= MAX_FILES:
        raise ValidationFailed(f"A manifest lists 1 to {MAX_FILES} files, not {len(manifest.files)}.")
    for entry in manifest.files:
        _check_file(entry)
    names = [entry.file.path.casefold() for entry in manifest.files]
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    if len(set(names)) != len(names) or folders & set(names):
        raise ValidationFailed("A manifest names one path twice.")
    if list(manifest.files) != sorted(manifest.files, key=lambda entry: entry.file.path):
        raise ValidationFailed("A manifest does not list its files in order.")
    if manifest.model_id != wanted:
        raise ValidationFailed(f"The manifest is of model {manifest.model_id}, not of {wanted}.")
    if manifest.size > max_size:
        raise TooLarge(f"The model has {manifest.size} bytes; {max_size} are allowed.")


def _check_file(entry: ManifestFile) -> None:
    file, path = entry.file, PurePosixPath(entry.file.path)
    # Hidden files are no part of a bundle, and this covers ".." too.
    unsafe = path.is_absolute() or path.as_posix() != file.path or path.name == ""
    unsafe = unsafe or any(part.startswith(".") for part in path.parts)
    if unsafe or len(file.path) > MAX_PATH or "\\" in file.path or not file.path.isprintable():
        raise ValidationFailed(f"A manifest names {file.path[:200]!r}, which is not a path inside a bundle.")
    if file.size < 0 or not _SHA256.match(file.sha256):
        raise ValidationFailed(f"A manifest gives {file.path!r} no proper size and digest.")
    if len(entry.digests) != -(-file.size // BLOCK) or any(len(d) != DIGEST for d in entry.digests):
        raise ValidationFailed(f"A manifest gives {file.path!r} the wrong number of blocks.")
