"""Download: one model coming in from several suppliers at once, block by block, onto the disk.

`core.transfer` says who is asked for what; here is one task for each source, and one that finds new
sources for those that go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio

from llmesh.core.bandwidth import Speedometer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import Manifest
from llmesh.core.transfer import Transfer
from llmesh.errors import Conflict, MeshError, TooLarge
from llmesh.mesh.suppliers import Suppliers
from llmesh.net.artifact import Source
from llmesh.net.host import PeerAddress
from llmesh.runtime.blocks import held_blocks, keep_block

__all__ = ["Download", "Progress", "Report"]

log = logging.getLogger(__name__)

SOURCES = 8
"""Sources at a time; each may have 4 blocks of 1 MiB in memory."""

PATIENCE = 60.0
"""Seconds without a piece of any block after which a download gives up."""

TICK = 1.0
"""Seconds between looks for new sources and reports while nothing happens."""

RETRY = 0.25
"""Seconds after which a source without work looks whether another has become too slow."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a model is: bytes verified and on disk, of how many, bytes per second, from whom."""

    model_id: ModelId
    done: int
    total: int
    rate: float
    sources: tuple[PeerId, ...]


Report: TypeAlias = Callable[[Progress], None]
"""Told of each block, and once a second; it must neither wait nor raise."""


class Download:
    """Brings the blocks of `manifest` into `folder`; one `run` each.

    `brought` counts the bytes that were fetched and kept.
    """

    def __init__(self, manifest: Manifest, folder: Path, suppliers: Suppliers, report: Report) -> None:
        self.brought = 0
        self._manifest = manifest
        self._model = manifest.model_id
        self._folder = folder
        self._suppliers = suppliers
        self._report = report
        self._transfer = Transfer(manifest)
        self._active: set[PeerId] = set()
        self._sources: dict[PeerId, Source] = {}
        self._fault: MeshError | None = None
        self._blocks_freed = trio.Event()
        self._sources_changed = trio.Event()

    async def run(self) -> bool:
        """Fetch what is not there yet; True once all is, False where no source gives any more.

        Raises Conflict for a full disk.  Whatever ends it, what was kept stays kept.
        """
        held = await trio.to_thread.run_sync(held_blocks, self._folder, self._manifest)
        self._transfer = Transfer(self._manifest, held)
        self._speed = Speedometer(trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_reporting)
            await self._recruit(nursery)
            nursery.cancel_scope.cancel()
        self._say()
        if self._fault is not None:
            raise self._fault
        return self._transfer.done

    async def _recruit(self, nursery: trio.Nursery) -> None:
        """Have as many sources as may be, until all is there or no more can come."""
        fed_at = trio.current_time()
        while not self._transfer.done and self._fault is None:
            ready = self._suppliers.ready(self._manifest, self._active)
            for contact in ready[: SOURCES - len(self._active)]:
                self._active.add(contact.peer_id)
                nursery.start_soon(self._draw_from, contact)
            fed_at = max([fed_at, *(source.heard_at for source in self._sources.values())])
            if trio.current_time() > fed_at + PATIENCE or not self._hopeful():
                return
            self._sources_changed = trio.Event()
            with trio.move_on_after(TICK):
                await self._sources_changed.wait()

    def _hopeful(self) -> bool:
        return bool(self._active) or self._suppliers.remain(self._manifest)

    async def _draw_from(self, contact: PeerAddress) -> None:
        """The whole time of one source with us."""
        peer = contact.peer_id
        try:
            async with self._suppliers.open(contact) as source:
                if source.manifest == self._manifest:
                    self._transfer.join(peer)
                    self._sources[peer] = source
                    await self._draw(source)
        except MeshError as error:
            log.info("%s no longer gives model %s: %s", peer, self._model, error.message)
            if isinstance(error, Conflict | TooLarge) and not error.remote:
                self._fault = error
        finally:
            self._transfer.leave(peer)
            self._sources.pop(peer, None)
            self._active.discard(peer)
            self._blocks_freed.set()
            self._blocks_freed = trio.Event()
            self._sources_changed.set()

    async def _draw(self, source: Source) -> None:
        transfer, peer = self._transfer, source.peer_id
        while not transfer.done:
            while (block := transfer.next(peer, trio.current_time())) is not None:
                await source.ask(block, transfer.size(block))
            if source.owes:
                await self._take(source)
            else:
                with trio.move_on_after(RETRY):
                    await self._blocks_freed.wait()

    async def _take(self, source: Source) -> None:
        """One block, from the wire to the disk."""
        block, data = await source.receive()
        digest = await trio.to_thread.run_sync(
            keep_block, self._folder, block, data, self._transfer.digest(block)
        )
        now = trio.current_time()
        if self._transfer.arrived(source.peer_id, block, digest, now):
            self.brought += len(data)
            self._speed.passed(len(data), now)
            self._say()
        if self._transfer.done:
            self._sources_changed.set()

    async def _keep_reporting(self) -> None:
        while True:
            self._say()
            await trio.sleep(TICK)

    def _say(self) -> None:
        transfer = self._transfer
        self._report(
            Progress(
                model_id=self._model,
                done=transfer.total - transfer.remaining,
                total=transfer.total,
                rate=self._speed.rate(trio.current_time()),
                sources=tuple(sorted(transfer.sources)),
            )
        )
