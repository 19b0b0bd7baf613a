"""Shelf: the models that this node has on offer, from their files to their announcement.

What its owner deploys is written down in the journal and comes back after a restart, until it is
removed; what the command line names is served for as long as the command line names it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId
from llmesh.core.model import Card, ModelInfo
from llmesh.errors import MeshError, ModelNotFound, ValidationFailed
from llmesh.journal.offers import DropOffer, KeepOffer, KeptOffer, kept_offers
from llmesh.journal.open import Journal
from llmesh.journal.writer import Change
from llmesh.mesh.announcer import Announcer
from llmesh.mesh.events import Events, ModelDeployed
from llmesh.mesh.provider import Provider
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.deposit import deposit
from llmesh.runtime.incoming import Incoming
from llmesh.runtime.store import Store

__all__ = ["Shelf"]

_log = logging.getLogger(__name__)


class Shelf:
    """Serves and removes models, one after the other; what fails or is cancelled changes nothing."""

    def __init__(
        self, store: Store, provider: Provider, announcer: Announcer, journal: Journal, events: Events
    ) -> None:
        self.store = store
        self._provider = provider
        self.announcer = announcer
        self._journal = journal
        self._events = events
        self._kept: set[ModelId] = set()
        self._turn = trio.Lock()

    def info(self, model: ModelId) -> ModelInfo | None:
        """What a model on it takes and gives."""
        return self._provider.info(model)

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What is on offer now, the latest last."""
        return self._provider.offers

    @property
    def in_use(self) -> Collection[ModelId]:
        """The models that must stay in the store: those on offer, and those that will be again."""
        return {*self._kept, *(offer.model_id for offer in self.offers)}

    def serves(self, model: ModelId) -> bool:
        """Whether a model is on offer."""
        return any(offer.model_id == model for offer in self.offers)

    def incoming(self) -> AbstractAsyncContextManager[Incoming]:
        """Where a model is written piece by piece, to be deployed before the block ends."""
        return self.store.incoming()

    async def recall(self) -> None:
        """Learn what is kept; before this nothing may make room in the store."""
        self._kept = {kept.model_id for kept in await self._journal.read(kept_offers)}

    async def restore(self) -> None:
        """Serve what is kept and not served already; what cannot be is told in the log and stays kept."""
        for kept in await self._journal.read(kept_offers):
            if not self.serves(kept.model_id):
                await self._restore(kept)

    async def _restore(self, kept: KeptOffer) -> None:
        try:
            bundle = await self.store.open(kept.model_id, kept.graph)
            await self._put_up(bundle, kept.card, kept.fee)
        except (MeshError, OSError) as error:
            reason = error.message if isinstance(error, MeshError) else str(error)
            _log.warning(
                "%s:%s (model %s) was on offer and is not served now: %s Deploy it again, or remove it.",
                kept.card.name, kept.card.version, kept.model_id, reason,
            )  # fmt: skip

    async def deploy(self, source: Path | bytes, card: Card, fee: Amount) -> ModelId:
        """Copy a model into the store, serve it from now on, over restarts too, and announce it.

        See `Node.deploy`.
        """
        async with self._deposited(source) as bundle:
            return await self.adopt(bundle, card, fee)

    async def serve(self, source: Path, card: Card, fee: Amount) -> ModelId:
        """`deploy`, for this life of the node only."""
        async with self._deposited(source) as bundle:
            return await self._offer(bundle, card, fee)

    async def adopt(self, bundle: Bundle, card: Card, fee: Amount) -> ModelId:
        """`deploy` for a bundle that is in the store."""
        kept = KeptOffer(bundle.id, card, fee, bundle.graph)
        model = await self._offer(bundle, card, fee, KeepOffer(kept))
        self._kept.add(model)
        return model

    async def remove(self, model: ModelId) -> None:
        """Serve a model no longer and remove the store's copy.

        It may be one that was kept and could not be served.  Raises ModelNotFound for one of others,
        TransactionFailed where the journal cannot be written; then nothing has changed.  Once it is
        its turn, a cancel waits until it is done.
        """
        async with self._turn:
            if model not in self.in_use:
                raise ModelNotFound(f"This node does not serve model {model}.")
            with trio.CancelScope(shield=True):  # bounded by the worker's own end
                await self._journal.commit(DropOffer(model))
                self._kept.discard(model)
                if self.serves(model):
                    self.announcer.retract(model)
                    await self._provider.remove(model)
                await self.store.remove(model)

    @asynccontextmanager
    async def _deposited(self, source: Path | bytes) -> AsyncGenerator[Bundle]:
        before = {stored.id for stored in self.store.models()}
        bundle = await deposit(self.store, source)
        try:
            yield bundle
        except ValidationFailed:
            if bundle.id not in before and bundle.id not in self.in_use:
                await self.store.remove(bundle.id)  # no model after all: it must not eat the quota
            raise

    async def _offer(self, bundle: Bundle, card: Card, fee: Amount, *changes: Change) -> ModelId:
        offer = await self._put_up(bundle, card, fee, *changes)
        self._events.tell(ModelDeployed(offer))
        return offer.model_id

    async def _put_up(self, bundle: Bundle, card: Card, fee: Amount, *changes: Change) -> Offer:
        """Load, announce and write down, or leave everything as it was."""
        async with self._turn:
            before = next((offer for offer in self.offers if offer.model_id == bundle.id), None)
            offer = await self._provider.deploy(bundle, card, fee)
            try:
                self._announce(offer, before)
                if changes:
                    await self._journal.commit(*changes)
            except (MeshError, trio.Cancelled):
                await self._undo(bundle, before)
                raise
            return offer

    def _announce(self, offer: Offer, before: Offer | None) -> None:
        """One model has one offer here: under a new name or version it leaves the old one."""
        if before is not None and (before.card.name, before.card.version) != (
            offer.card.name,
            offer.card.version,
        ):
            self.announcer.retract(offer.model_id)
        self.announcer.offer(offer)

    async def _undo(self, bundle: Bundle, before: Offer | None) -> None:
        """What could not be announced or written down is served as before, or not at all."""
        with trio.CancelScope() as cleanup:
            cleanup.shield = True  # bounded by the worker's own end
            self.announcer.retract(bundle.id)
            if before is None:
                await self._provider.remove(bundle.id)
            else:
                await self._provider.deploy(bundle, before.card, before.fee)
                self.announcer.offer(before)
