"""Fetcher: brings a model from the peers that offer it into this node's store.

Nobody is believed: the files' digests must hash to the ModelId, each block must have the digest that
its giver's own manifest says, and whoever gave a manifest that does not lead to the files is named
and loses its standing.  What is on disk and right is never fetched again, over restarts too.
"""

from __future__ import annotations

import trio

from llmesh.core.ids import ModelId, PeerId
from llmesh.core.ranking import most_bonded
from llmesh.core.reference import ModelRef
from llmesh.errors import ModelNotFound, ValidationFailed
from llmesh.mesh.candidates import Offers
from llmesh.mesh.download import Download, Progress, Report
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.suppliers import FINDING, Suppliers
from llmesh.net.sessions import Sessions
from llmesh.net.throttle import Throttle
from llmesh.runtime.blocks import wrong_file
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.store import Store

__all__ = ["Fetcher"]


def _ignore(progress: Progress) -> None:
    """Nobody wants to know."""


class Fetcher:
    """Fetches models, each once at a time.

    `own` is this node, which is never asked; `throttle` caps all fetching together.
    """

    def __init__(
        self,
        own: PeerId,
        store: Store,
        sessions: Sessions,
        offers: Offers,
        reputation: Reputation,
        throttle: Throttle,
    ) -> None:
        self._own = own
        self._store = store
        self._sessions = sessions
        self._offers = offers
        self._reputation = reputation
        self._throttle = throttle

    async def fetch(self, ref: ModelRef, report: Report = _ignore) -> Bundle:
        """The model as the store has it, fetched if it is not there; `report` hears of the progress.

        Raises ModelNotFound, NodeUnreachable or NodeBusy where nobody gives it (any more), TooLarge over
        the quota, Conflict for a full disk or a model that is being fetched already, ValidationFailed
        for one that is no bundle.  After an error or a cancel, the next call goes on where this ended.
        """
        model = await self._resolve(ref)
        try:
            return await self._store.open(model)
        except ModelNotFound:
            return await self._fetch(model, report)

    async def _fetch(self, model: ModelId, report: Report) -> Bundle:
        """One manifest after the other, until one leads to the model."""
        suppliers = Suppliers(
            model, self._own, self._sessions, self._offers, self._reputation, self._throttle
        )
        while True:
            manifest = await suppliers.agree()
            await self._store.make_room(manifest.size, model)
            with self._store.receiving(model, manifest.size) as folder:
                download = Download(manifest, folder, suppliers, report)
                if await download.run():
                    try:
                        return await self._store.adopt(model)
                    except ValidationFailed:
                        wrong = await trio.to_thread.run_sync(wrong_file, folder, manifest)
                        if wrong is None:
                            raise
                        suppliers.refute(manifest, f"its digests do not lead to {wrong}.")
                elif not download.brought:
                    suppliers.set_aside(manifest)

    async def _resolve(self, ref: ModelRef) -> ModelId:
        """The one model that is meant."""
        if ref.id is not None:
            return ref.id
        if not self._offers.lookup(ref):
            with trio.move_on_after(FINDING):
                await self._offers.find(ref)
        model = most_bonded(ref, self._offers.lookup(ref))
        if model is None:
            raise ModelNotFound(f"No valid offer of {ref} is known, here or to the peers asked.")
        return model
