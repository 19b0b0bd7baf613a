"""Candidates: which providers may answer a request, best first.

Brings together what this node offers itself, what is known of others' offers, and what was measured
of them; `core.ranking` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

import trio

from llmesh.core.announcement import Announcement, Offer
from llmesh.core.credentials import Payee, payee_of
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import InferenceRequest, Skipped
from llmesh.core.pricing import FREE
from llmesh.core.ranking import MAX_SKIPPED, Candidate, Plan, eligible, most_bonded, rank
from llmesh.core.reference import ModelRef
from llmesh.core.typed import Chain
from llmesh.core.wishes import Wishes
from llmesh.errors import ModelNotFound, ValidationFailed
from llmesh.mesh.provider import Provider
from llmesh.mesh.reputation import Reputation

__all__ = ["Candidates", "Offers"]

NAMES_TOLD = 5
"""The most names of one model that an error lists."""


class Offers(Protocol):
    """Where offers are known; discovery is."""

    def lookup(self, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
        """Every valid offer that the reference names, as known here and now."""

    async def find(self, ref: ModelRef) -> object:
        """Ask the mesh for offers that are not known here yet.  Safe to cancel."""


class Candidates:
    """Resolves a reference to one model and ranks whoever offers it, this node included."""

    def __init__(
        self,
        provider: Provider,
        offers: Offers,
        reputation: Reputation,
        chain: Chain,
        clock: Callable[[], float],
    ) -> None:
        """`chain` is the ledger that this node pays on, `clock` gives seconds since 1970."""
        self._provider = provider
        self._chain = chain
        self._clock = clock
        self._offers = offers
        self._reputation = reputation
        self._random = Random()  # noqa: S311  (spreads load; no secret)

    async def ranked(self, request: InferenceRequest, wishes: Wishes, find_window: float) -> Plan:
        """Providers of the one model that is meant.

        Searches the mesh for at most `find_window` seconds, and half of the request's time, where
        no offer is known.  Raises ModelNotFound.
        """
        known = self._known(request.model)
        if not known:
            with trio.move_on_after(min(find_window, request.timeout / 2)):
                await self._offers.find(request.model)
            known = self._known(request.model)
        if not known:
            raise self._unknown(request.model)
        candidates, foreign = self._payable(known, request.model)
        plan = eligible(candidates, request.max_fee, wishes, self._provider.peer_id)
        ranked = rank(plan.candidates, self._reputation.measured, wishes.sort, self._random.random)
        return Plan(tuple(ranked), (*plan.skipped, *foreign)[:MAX_SKIPPED])

    def _payable(self, known: Sequence[Candidate], ref: ModelRef) -> tuple[list[Candidate], list[Skipped]]:
        """Those whose receipts can be checked and whose fee can be paid, and the others."""
        foreign = {
            c.peer_id: why for c in known if c.peer_id != self._provider.peer_id and (why := self._foreign(c))
        }
        if len(foreign) == len(known):
            raise ModelNotFound(
                f"No provider of {ref} can be used by this node ({next(iter(foreign.values()))})"
            )
        skipped = [Skipped(peer, ModelNotFound.code, why) for peer, why in foreign.items()]
        return [c for c in known if c.peer_id not in foreign], skipped

    def _foreign(self, candidate: Candidate) -> str:
        if candidate.payee is None:
            return "It does not prove by which account it works."
        if candidate.fee and candidate.payee.chain != self._chain:
            return "It belongs to another swarm, whose members alone can pay it."
        return ""

    def other(self, ref: ModelRef, model: ModelId) -> ModelId | None:
        """Another model that the reference may mean and that someone present offers."""
        if ref.id is not None:
            return None
        return most_bonded(ref, [pair for pair in self._present(ref) if pair[0].model_id != model])

    def _meant(self, ref: ModelRef) -> ModelId | None:
        """The model of that name; announced stake is no proof, so only those present put theirs in."""
        return most_bonded(ref, self._present(ref) or self._offers.lookup(ref))

    def _present(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        offers = self._offers.lookup(ref)
        return [pair for pair in offers if not self._reputation.absent(pair[1].peer_id)]

    def _known(self, ref: ModelRef) -> list[Candidate]:
        model = ref.id or self._own_model(ref) or self._meant(ref)
        if model is None:
            return []
        own = self._provider.peer_id
        cheapest: dict[PeerId, Candidate] = {}
        for offer in self._provider.offers:
            if offer.model_id == model and _pinned(ref, offer):
                cheapest[own] = Candidate(own, (), offer, FREE, FREE)
        for offer, announcement in self._offers.lookup(ModelRef(ref.name, id=model)):
            peer = announcement.peer_id
            if peer == own or not _pinned(ref, offer):
                continue
            if peer not in cheapest or offer.fee < cheapest[peer].fee:
                payee = self._payee(announcement, offer)
                cheapest[peer] = Candidate(
                    peer, announcement.addresses, offer, announcement.stake, offer.fee, payee
                )
        return list(cheapest.values())

    def _payee(self, announcement: Announcement, offer: Offer) -> Payee | None:
        try:
            return payee_of(announcement, offer, self._clock())
        except ValidationFailed:
            return None

    def _own_model(self, ref: ModelRef) -> ModelId | None:
        """This node's own model of that name, the one deployed last where versions differ."""
        return next((o.model_id for o in reversed(self._provider.offers) if _named(ref, o)), None)

    def _unknown(self, ref: ModelRef) -> ModelNotFound:
        offers = [*self._provider.offers, *(offer for offer, _ in self._offers.lookup(ref))]
        names = sorted({f"{o.card.name}:{o.card.version}" for o in offers if o.model_id == ref.id})
        if not names:
            return ModelNotFound(f"No valid offer of {ref} is known, here or to the peers asked.")
        known = ", ".join(names[:NAMES_TOLD])
        return ModelNotFound(f"No valid offer of {ref} is known; that model is offered as {known}.")


def _named(ref: ModelRef, offer: Offer) -> bool:
    return offer.card.name == ref.name and ref.version in ("", offer.card.version)


def _pinned(ref: ModelRef, offer: Offer) -> bool:
    """Whether the offer bears the name that stands before a pin, if one does."""
    return ref.id is None or not ref.name or _named(ref, offer)
