"""The store: a node's own copies of bundles, by ModelId, under a quota.

A model is written into a staging folder, synced, and appears by one rename; whatever a crash
leaves in staging is swept at the next start.  Nothing in `models/` is ever changed in place, and
everything is hashed again before it is handed out.  What nobody uses stays until its room is needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio
from trio.from_thread import check_cancelled

from llmesh.core.ids import ModelId, model_id
from llmesh.errors import Conflict, ModelNotFound, TooLarge, ValidationFailed
from llmesh.runtime.archive import ArchiveLimits, unpack
from llmesh.runtime.bundle import Bundle, read_bundle
from llmesh.runtime.disk import disk_faults
from llmesh.runtime.incoming import Incoming

__all__ = ["InUse", "Store", "Stored", "open_store"]

DEFAULT_QUOTA = 64 << 30


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in the store: its folder, bytes, and when it was last opened (seconds since 1970)."""

    id: ModelId
    folder: Path
    size: int
    used_at: float


InUse: TypeAlias = Callable[[], Collection[ModelId]]


async def open_store(folder: Path, quota: int = DEFAULT_QUOTA, in_use: InUse = tuple) -> Store:
    """The store in a folder, which is made if need be; sweeps what a crash left behind.

    `quota` is in bytes; `in_use` names the models that are never removed to make room.  One process
    at a time may have it open.  Raises OSError.
    """
    store = Store(folder, quota, in_use)
    await trio.to_thread.run_sync(store.sweep)
    return store


class Store:
    """See the module; every method is safe to cancel and leaves whole models only."""

    def __init__(self, folder: Path, quota: int, in_use: InUse) -> None:
        self._models = folder / "models"
        self._staging = folder / "staging"
        self._quota = quota
        self._in_use = in_use
        self._writing = trio.Lock()
        self._receiving: dict[ModelId, int] = {}
        self._incoming = 0
        self._resting = 0

    def sweep(self) -> None:
        """Remove unfinished writes; transfers under way keep theirs (see `partial`)."""
        self._models.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        for entry in self._staging.iterdir():
            if not entry.name.endswith(_PARTIAL):
                shutil.rmtree(entry, ignore_errors=True)

    def models(self) -> list[Stored]:
        """All models, the longest unused first."""
        return sorted(map(_stored, self._models.iterdir()), key=lambda stored: stored.used_at)

    async def add(self, path: Path, graph: str | None = None) -> Bundle:
        """Copy a folder, an `.onnx` file with what belongs to it, or an archive of a folder.

        Of several graphs in it, `graph` names the one to run (see `read_bundle`).
        Adding what is there changes nothing.  Raises ValidationFailed for what is no bundle,
        TooLarge over the quota, Conflict where the disk is full.
        """
        if not await trio.Path(path).exists():
            raise ValidationFailed(f"There is nothing at {path}.")
        if await trio.Path(path).is_dir() or path.suffix == ".onnx":
            source = await read_bundle(path, graph)
            graph = source.graph
            if not await trio.Path(self._folder(source.id)).is_dir():
                await self.make_room(sum(file.size for file in source.files), source.id)
            return await self._write(lambda folder: _copy(source, folder), graph)
        if not await trio.Path(path).is_file():
            raise ValidationFailed(f"{path} is neither a folder nor a plain file.")
        limits = ArchiveLimits(size=max(0, self._quota - self._firm()))
        return await self._write(lambda folder: unpack(path, folder, limits, check_cancelled), graph)

    @asynccontextmanager
    async def incoming(self) -> AsyncGenerator[Incoming]:
        """A file that comes piece by piece, to be added in this block; at its end it is removed.

        What comes is held against the quota while it comes, all such files together, as if what
        nobody uses were gone.  Raises Conflict where the disk is full.
        """
        self._resting = self._firm()
        folder, size = self._new_folder(), 0

        def admit(more: int) -> None:
            nonlocal size
            if self._resting + self._incoming + more > self._quota:
                raise TooLarge(f"The model is larger than what is left of the store's {self._quota} bytes.")
            self._incoming += more
            size += more

        try:
            yield Incoming(folder, admit)
        finally:
            self._incoming -= size
            self._resting = self._firm()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def open(self, model: ModelId, graph: str | None = None) -> Bundle:
        """The bundle, hashed anew.  Raises ModelNotFound, ValidationFailed where it was altered."""
        folder = self._folder(model)
        if not folder.is_dir():
            raise ModelNotFound(f"The model {model} is not in this node's store.")
        os.utime(folder)  # first, so that it is not removed for another while it is read
        bundle = await read_bundle(folder, graph)
        if bundle.id != model:
            raise ValidationFailed(f"The stored files of {model} were altered; remove it and add it again.")
        return bundle

    async def remove(self, model: ModelId) -> None:
        """Give the space back, an unfinished transfer's too; a model that is not there is left so."""
        async with self._writing:
            await self._discard(self._folder(model))
            if model not in self._receiving:
                await self._discard(self._unfinished(model))

    async def make_room(self, size: int, model: ModelId | None = None) -> None:
        """See to it that `size` bytes, of a model, fit the quota: what nobody uses is removed if need be.

        Transfers that nobody goes on with go first, then the longest unused models, but none that is
        in use or was used within the last ten minutes, as one is that is about to be served.  Raises
        TooLarge, having removed nothing, where that would not do.
        """
        async with self._writing:
            await self._make_room(size, model)

    def used(self) -> int:
        """Bytes of all models."""
        return sum(stored.size for stored in self.models())

    @contextmanager
    def receiving(self, model: ModelId, size: int) -> Iterator[Path]:
        """The folder for a transfer of a model; its bytes count as taken while the block runs.

        The folder is kept over restarts, so that the transfer resumes.  Raises Conflict where the model
        is being received already, TooLarge over the quota (see `make_room`).
        """
        if model in self._receiving:
            raise Conflict(f"The model {model} is being fetched already.")
        self._check_room(size, model)
        self._receiving[model] = size
        try:
            yield self.partial(model)
        finally:
            del self._receiving[model]

    def partial(self, model: ModelId) -> Path:
        """The folder of an unfinished transfer of a model, made if need be.

        Raises Conflict where the disk is full.
        """
        folder = self._unfinished(model)
        with disk_faults():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def adopt(self, model: ModelId) -> Bundle:
        """Take over a finished transfer.

        Raises ValidationFailed where it is no bundle or not that model; it is then left as it is.
        """
        folder = self.partial(model)
        async with self._writing:
            bundle = await read_bundle(folder)
            if bundle.id != model:
                raise ValidationFailed(f"What was fetched is model {bundle.id}, not {model}.")
            adopted = await self._publish(folder, bundle)
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
            return adopted

    async def _write(self, fill: Callable[[Path], None], graph: str | None) -> Bundle:
        async with self._writing:
            staged = self._new_folder()
            try:
                with disk_faults():
                    await trio.to_thread.run_sync(fill, staged)
                return await self._publish(staged, await read_bundle(_only_folder(staged), graph))
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(lambda: shutil.rmtree(staged, ignore_errors=True))

    def _new_folder(self) -> Path:
        with disk_faults():
            return Path(tempfile.mkdtemp(dir=self._staging))

    async def _publish(self, staged: Path, bundle: Bundle) -> Bundle:
        target = self._folder(bundle.id)
        if await trio.Path(target).is_dir():
            os.utime(target)
            return _moved(bundle, target)
        await self._make_room(sum(file.size for file in bundle.files), bundle.id)
        with trio.CancelScope(shield=True), disk_faults():
            await trio.to_thread.run_sync(_sync_and_rename, bundle, target)
        return _moved(bundle, target)

    async def _make_room(self, size: int, model: ModelId | None) -> None:
        if self._firm(model) + size > self._quota:
            self._check_room(size, model)
        while self._taken(model) + size > self._quota and (spare := self._spare(model)):
            await self._discard(spare[0].folder)
        self._check_room(size, model)

    async def _discard(self, folder: Path) -> None:
        """Hidden first, so that nobody begins to use it and a crash leaves no half of a model in use."""
        doomed = _hide(folder, self._staging)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(doomed, ignore_errors=True))

    def _spare(self, besides: ModelId | None) -> list[Stored]:
        """What may be removed to make room, in that order."""
        keep, latest = {*self._in_use(), besides}, time.time() - _LATELY
        models = [each for each in self.models() if each.id not in keep and each.used_at < latest]
        return [*(left for left in self._abandoned() if left.id != besides), *models]

    def _firm(self, besides: ModelId | None = None) -> int:
        """What would be taken if all that may be removed were."""
        return self._taken(besides) - sum(spare.size for spare in self._spare(besides))

    def _check_room(self, size: int, model: ModelId | None) -> None:
        if (taken := self._taken(model)) + size > self._quota:
            raise TooLarge(f"The model has {size} bytes; of the store's {self._quota}, {taken} are taken.")

    def _taken(self, besides: ModelId | None = None) -> int:
        """Bytes of all models and of the transfers of all other models, those under way in full."""
        coming = sum(size for model, size in self._receiving.items() if model != besides)
        return self.used() + coming + sum(left.size for left in self._abandoned() if left.id != besides)

    def _abandoned(self) -> list[Stored]:
        """Transfers that are not under way, the oldest first."""
        # Not looked into while it is under way: its files come and go in threads.
        under_way = set(map(self._unfinished, self._receiving))
        left = [folder for folder in self._staging.glob(f"*{_PARTIAL}") if folder not in under_way]
        return sorted(map(_stored, left), key=lambda each: each.used_at)

    def _folder(self, model: ModelId) -> Path:
        return self._models / model_id(model)

    def _unfinished(self, model: ModelId) -> Path:
        return self._staging / f"{model_id(model)}{_PARTIAL}"


_PARTIAL = ".partial"
_LATELY = 600.0  # seconds
_PIECE = 1 << 20
_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _only_folder(staged: Path) -> Path:
    """An archive often holds one folder that holds the files."""
    entries = [entry for entry in staged.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and entries[0].name != "onnx" else staged


def _copy(bundle: Bundle, folder: Path) -> None:
    for file in bundle.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(bundle.folder / file.path, target)


def _copy_file(source: Path, target: Path) -> None:
    with os.fdopen(os.open(source, _NO_LINK), "rb") as file, target.open("xb") as copy:
        while piece := file.read(_PIECE):
            check_cancelled()
            copy.write(piece)


def _moved(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle(folder, bundle.files, bundle.id, bundle.graph)


def _sync_and_rename(bundle: Bundle, target: Path) -> None:
    """Files, then folders, then the name: the order in which a crash may cut it off."""
    listed = {file.path for file in bundle.files}
    for path in [p for p in bundle.folder.rglob("*") if p.is_file()]:
        if path.relative_to(bundle.folder).as_posix() in listed:
            _fsync(path)
        else:
            path.unlink()  # hidden files are no part of the model
    for path in [*(p for p in bundle.folder.rglob("*") if p.is_dir()), bundle.folder]:
        _fsync(path)
    bundle.folder.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hide(folder: Path, staging: Path) -> Path:
    """Move a folder that may not be there to where the next start would sweep it away.

    A new folder around it would be too much for a disk that is full.
    """
    hidden = staging / f"{secrets.token_hex(8)}.removed"
    with suppress(FileNotFoundError):
        folder.rename(hidden)
    return hidden


def _stored(folder: Path) -> Stored:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Stored(ModelId(folder.name.removesuffix(_PARTIAL)), folder, size, folder.stat().st_mtime)
