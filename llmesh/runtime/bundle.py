"""Bundle: a model's files in a folder, with the ModelId that they have.

A bundle is read where it lies; nothing is copied and nothing is run.  Every file under the folder
belongs to it except hidden ones, so that the id covers all that a worker may open.  What is in
the files is for others: the graph is checked by `scanner`, the rest is read by the worker.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import trio

from llmesh.core.ids import ModelId
from llmesh.core.model import BundleFile, model_id_of
from llmesh.errors import ValidationFailed
from llmesh.runtime.scanner import scan_bundle_graph

__all__ = ["Bundle", "check_unaltered", "read_bundle"]

_MAX_FILES = 1_000
_MAX_BYTES = 64 << 30
_MAX_DEPTH = 8
_BLOCK = 1 << 20
_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CONFIGS = ("config.json", "tokenizer.json")
# What exporters call the graph, and its variants in the order in which a CPU likes to run them.
_VARIANTS = ("", "_quantized", "_int8", "_uint8", "_q4", "_q4f16", "_fp16")
_PLACES = tuple(f"{place}model{variant}.onnx" for variant in _VARIANTS for place in ("", "onnx/"))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose listed files make up one model; `graph` is the ONNX file to run, relative."""

    folder: Path
    files: tuple[BundleFile, ...]
    id: ModelId
    graph: str


async def read_bundle(path: Path, graph: str | None = None) -> Bundle:
    """The bundle at a path: a folder, or an `.onnx` file.

    Of several graphs in a folder, `graph` (a path inside it) names the one to run; without it that
    is `model.onnx`, else its quantised variants, 16-bit floats last, or else the only one.  An
    `.onnx` beside a `config.json` or `tokenizer.json` (or in the `onnx` folder beside them) stands
    for that whole folder, under the same id; without them it is a bundle of itself and the external
    data that it names.  Reads and hashes in a thread; a cancel stops that within a block.  Raises
    ValidationFailed, which names the file and the reason.
    """
    folder, picked = await trio.to_thread.run_sync(_find, path, graph)
    names: tuple[str, ...] | None = None
    if path.suffix == ".onnx" and not _has_configs(folder):
        names = (picked, *(await scan_bundle_graph(folder, picked)).external)
    return await trio.to_thread.run_sync(_read, folder, picked, names)


def check_unaltered(bundle: Bundle) -> None:
    """Hash a bundle's files again, in a thread.  Raises ValidationFailed where one is not the same."""
    for file in bundle.files:
        if _sha256(bundle.folder, file.path, file.size) != file.sha256:
            raise ValidationFailed(f"{file.path} was altered; deploy the model again.")


def _find(path: Path, graph: str | None) -> tuple[Path, str]:
    """The folder of the bundle and the graph in it."""
    with _faults_named(path.name):
        if path.suffix == ".onnx" and path.is_file():
            folder, own = _split(path)
            _regular_size(folder, own)
            return folder, own
        if not path.exists():
            raise ValidationFailed(f"There is nothing at {path}.")
        if not path.is_dir():
            raise ValidationFailed(f"{path} is neither a folder nor an .onnx file.")
        folder = path.resolve()
        return folder, _pick_graph(_regular_files(folder), graph)


def _read(folder: Path, graph: str, names: tuple[str, ...] | None) -> Bundle:
    """Of the files of these names, or of all."""
    with _faults_named(folder.name):
        if names is None:
            sizes = _regular_files(folder)
        else:
            sizes = {name: _regular_size(folder, name) for name in names}
    files = tuple(BundleFile(name, size, _sha256(folder, name, size)) for name, size in sorted(sizes.items()))
    return Bundle(folder, files, model_id_of(files), graph)


@contextmanager
def _faults_named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValidationFailed(f"{name} cannot be read: {error.strerror or error}.") from None


def _split(path: Path) -> tuple[Path, str]:
    """The folder whose bundle an `.onnx` file stands for, and its path in there."""
    folder = path.parent.resolve()
    if folder.name == "onnx" and not _has_configs(folder) and _has_configs(folder.parent):
        return folder.parent, f"onnx/{path.name}"
    return folder, path.name


def _has_configs(folder: Path) -> bool:
    return any((folder / name).exists() for name in _CONFIGS)


def _regular_files(folder: Path) -> dict[str, int]:
    """Path and size of every file below a folder, hidden ones aside; nothing else may be there."""
    sizes: dict[str, int] = {}
    for name in _names(folder, PurePosixPath(), 0):
        sizes[name] = _regular_size(folder, name)
        if len(sizes) > _MAX_FILES or sum(sizes.values()) > _MAX_BYTES:
            raise ValidationFailed(
                f"{folder} holds more than a bundle may: {_MAX_FILES} files, {_MAX_BYTES >> 30} GiB."
            )
    return sizes


def _names(folder: Path, below: PurePosixPath, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValidationFailed(f"{below} lies more than {_MAX_DEPTH} folders deep.")
    trio.from_thread.check_cancelled()
    with os.scandir(folder / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _names(folder, below / entry.name, depth + 1)
            else:
                yield str(below / entry.name)


def _regular_size(folder: Path, name: str) -> int:
    """The size of a file that may belong to a bundle: regular, and under a plain name."""
    if not name.isprintable():  # line ends would make the text that the id hashes ambiguous
        raise ValidationFailed(f"{name!a} is no name for a file of a bundle.")
    with _faults_named(name):
        status = (folder / name).lstat()
    if stat.S_ISLNK(status.st_mode):
        raise ValidationFailed(
            f"{name} is a symbolic link; a bundle holds the files themselves (copy it with `cp -rL`)."
        )
    if not stat.S_ISREG(status.st_mode):
        raise ValidationFailed(f"{name} is not a regular file.")
    return status.st_size


def _pick_graph(names: Iterable[str], wanted: str | None) -> str:
    graphs = sorted(name for name in names if name.endswith(".onnx"))
    listed = ", ".join(graphs[:10]) + (", ..." if len(graphs) > 10 else "")
    for name in _PLACES if wanted is None else (wanted,):
        if name in graphs:
            return name
    if wanted is not None:
        raise ValidationFailed(f"The folder has no graph {wanted[:200]!r}; it has {listed or 'none'}.")
    if len(graphs) == 1:
        return graphs[0]
    if not graphs:
        raise ValidationFailed("The folder holds no .onnx file.")
    raise ValidationFailed(f"The folder holds several graphs; give the path of one of {listed}.")


def _sha256(folder: Path, name: str, size: int) -> str:
    digest = hashlib.sha256()
    with _faults_named(name), os.fdopen(os.open(folder / name, _NO_LINK), "rb") as file:
        read = 0
        while block := file.read(_BLOCK):
            trio.from_thread.check_cancelled()
            read += len(block)
            digest.update(block)
    if read != size:
        raise ValidationFailed(f"{name} changed while it was read.")
    return digest.hexdigest()
