"""Seeder: hands out the files of the models that this node offers, a few transfers at a time.

A model's manifest is made when it is first asked for, once, in a thread; the asker may go, the work
goes on.  Every block is hashed before it leaves, so that a file which changed under us costs a
transfer and not our good name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import Block, Manifest
from llmesh.errors import ModelNotFound, NodeBusy, ValidationFailed
from llmesh.net.artifact import Replica
from llmesh.runtime.blocks import make_manifest, read_block
from llmesh.runtime.bundle import Bundle

__all__ = ["Offered", "Seeder", "SeederLimits", "open_seeder"]

log = logging.getLogger(__name__)

Offered: TypeAlias = Callable[[ModelId], Bundle | None]
"""Where the files of a model are, if this node offers it now."""

RETRY_AFTER = 5.0


@dataclass(frozen=True, slots=True)
class SeederLimits:
    """Transfers at a time, of all peers together and of one."""

    transfers: int = 8
    per_peer: int = 2


_DEFAULT = SeederLimits()


@dataclass(slots=True)
class _Making:
    """The manifest of a model, once it is made; None then if its files are no longer what they were."""

    bundle: Bundle
    manifest: Manifest | None = None
    made: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def open_seeder(offered: Offered, limits: SeederLimits = _DEFAULT) -> AsyncIterator[Seeder]:
    """A seeder for the models that `offered` knows; leaving ends the hashing under way."""
    async with trio.open_nursery() as nursery:
        yield Seeder(offered, limits, nursery)
        nursery.cancel_scope.cancel()


class Seeder:
    """Made by `open_seeder`; `serve` is for `net.artifact.handler`."""

    def __init__(self, offered: Offered, limits: SeederLimits, nursery: trio.Nursery) -> None:
        self._offered = offered
        self._limits = limits
        self._nursery = nursery
        self._makings: dict[ModelId, _Making] = {}
        self._hashing = trio.Lock()
        self._transfers: Counter[PeerId] = Counter()

    @asynccontextmanager
    async def serve(self, model: ModelId, peer: PeerId) -> AsyncGenerator[Replica]:
        """A model's files for a peer.  Raises ModelNotFound, and NodeBusy where all places are taken."""
        with self._place(peer):
            bundle = self._offered(model)
            if bundle is None:
                self._makings.pop(model, None)
                raise _not_here(model)
            yield _Files(bundle, await self._manifest(bundle))

    @contextmanager
    def _place(self, peer: PeerId) -> Iterator[None]:
        limits, taken = self._limits, self._transfers
        if taken.total() >= limits.transfers or taken[peer] >= limits.per_peer:
            busy = f"This node sends files to {limits.transfers} at a time, {limits.per_peer} for one peer."
            raise NodeBusy(busy, retry_after=RETRY_AFTER)
        taken[peer] += 1
        try:
            yield
        finally:
            taken[peer] -= 1
            if not taken[peer]:
                del taken[peer]

    async def _manifest(self, bundle: Bundle) -> Manifest:
        making = self._makings.get(bundle.id)
        if making is None or making.bundle != bundle:
            making = self._makings[bundle.id] = _Making(bundle)
            self._nursery.start_soon(self._make, making)
        await making.made.wait()
        if making.manifest is None:
            raise _not_here(bundle.id)
        return making.manifest

    async def _make(self, making: _Making) -> None:
        """One model after the other: disks like that."""
        try:
            async with self._hashing:
                making.manifest = await trio.to_thread.run_sync(make_manifest, making.bundle)
        except ValidationFailed as error:
            log.warning("model %s cannot be given away: %s", making.bundle.id, error.message)
            self._makings.pop(making.bundle.id, None)
        finally:
            making.made.set()


class _Files:
    """See `net.artifact.Replica`."""

    def __init__(self, bundle: Bundle, manifest: Manifest) -> None:
        self.manifest = manifest
        self._bundle = bundle
        self._blocks = frozenset(manifest.blocks())

    async def read(self, block: Block) -> bytes:
        """See `net.artifact.Replica`; reads in a thread."""
        if block not in self._blocks:
            raise ValidationFailed(f"The model has no block {block.number} of {block.path[:200]!r}.")
        try:
            return await trio.to_thread.run_sync(read_block, self._bundle.folder, self.manifest, block)
        except ValidationFailed as error:
            log.warning("model %s is no longer given away: %s", self._bundle.id, error.message)
            raise _not_here(self._bundle.id) from None


def _not_here(model: ModelId) -> ModelNotFound:
    return ModelNotFound(f"This node has no files of model {model} to give.")
