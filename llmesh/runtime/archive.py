"""Unpack a bundle that comes as one file (.zip, .tar, .tar.gz), trusting nothing in it.

Sizes, counts and paths are judged before a byte is written; what is not a regular file or a folder
is refused, and every limit holds again while the bytes come out, whatever the headers claimed.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from llmesh.errors import TooLarge, ValidationFailed

__all__ = ["ArchiveLimits", "unpack"]

_PIECE = 1 << 20
# What the standard library raises on bytes that are no archive; bz2 and gzip use OSError without errno.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The most an archive may hold: bytes unpacked, entries, and bytes out per byte in."""

    size: int = 8 << 30
    entries: int = 2_000
    ratio: int = 200


@dataclass(frozen=True, slots=True)
class _Entry:
    path: PurePosixPath
    size: int
    stream: IO[bytes]


def _go_on() -> None:
    """Nobody wants it to stop."""


def unpack(
    archive: Path,
    folder: Path,
    limits: ArchiveLimits = ArchiveLimits(),
    check_cancelled: Callable[[], None] = _go_on,
) -> None:
    """Write the archive's files below an existing empty folder.

    `check_cancelled` is called before each piece is written and may raise.
    Raises ValidationFailed for what is not such an archive, for links, devices and paths that
    leave the folder, TooLarge over a limit, OSError where the disk fails; the folder may then
    hold a part and is the caller's to remove.
    """
    room = min(limits.size, archive.stat().st_size * limits.ratio + _PIECE)
    seen: set[str] = set()
    try:
        for count, entry in enumerate(_entries(archive), 1):
            if count > limits.entries:
                raise TooLarge(f"The archive has more than {limits.entries} entries.")
            if entry.path.as_posix().casefold() in seen:
                raise ValidationFailed(f"The archive has {entry.path.as_posix()!r} twice.")
            seen.add(entry.path.as_posix().casefold())
            room -= _write(entry, folder, room, check_cancelled)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        raise ValidationFailed(f"The archive is damaged: {error}.") from None


def _write(entry: _Entry, folder: Path, room: int, check_cancelled: Callable[[], None]) -> int:
    if entry.size > room:
        raise TooLarge(f"The archive unpacks to more than is allowed (at {entry.path.as_posix()!r}).")
    target = folder.joinpath(*entry.path.parts)
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            while piece := entry.stream.read(_PIECE):
                check_cancelled()
                written += len(piece)
                if written > entry.size:
                    raise ValidationFailed(f"The archive lies about the size of {entry.path.as_posix()!r}.")
                out.write(piece)
    except (FileExistsError, NotADirectoryError):
        raise ValidationFailed(
            f"The archive has {entry.path.as_posix()!r} as both file and folder."
        ) from None
    if written != entry.size:
        raise ValidationFailed(f"The archive is cut short at {entry.path.as_posix()!r}.")
    return written


def _entries(archive: Path) -> Iterator[_Entry]:
    if zipfile.is_zipfile(archive):
        yield from _zip_entries(archive)
    else:
        yield from _tar_entries(archive)


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise ValidationFailed(f"The archive has {info.filename!r}, which is not a plain file.")
            path = _safe(info.filename)
            if not info.is_dir():
                with file.open(info) as stream:
                    yield _Entry(path, info.file_size, stream)


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with _open_tar(archive) as file:
        for info in file:
            path = _safe(info.name)
            if info.isdir():
                continue
            stream = file.extractfile(info) if info.isreg() else None
            if stream is None or info.issparse():
                raise ValidationFailed(f"The archive has {info.name!r}, which is not a plain file.")
            yield _Entry(path, info.size, stream)


def _open_tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, "r:*")
    except tarfile.ReadError:  # its text has a line for each kind of archive that was tried
        raise ValidationFailed(
            f"{archive.name} is neither an .onnx file nor a .zip or .tar that can be read."
        ) from None


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(name) > 1024:
        raise ValidationFailed(f"The archive has {name[:200]!r}, which is not a path inside it.")
    return path
