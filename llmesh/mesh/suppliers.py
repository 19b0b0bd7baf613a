"""Suppliers: the peers that may give the files of one model, while it is being fetched.

Knows who offers it, what manifest each of them gave, and who is to be left alone for a while or for
good; what a peer did is told to `Reputation` as well.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import trio

from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import Manifest
from llmesh.core.peering import Backoff
from llmesh.core.ranking import Trust
from llmesh.core.reference import ModelRef
from llmesh.errors import (
    MeshError,
    ModelNotFound,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    ValidationFailed,
)  # fmt: skip
from llmesh.mesh.candidates import Offers
from llmesh.mesh.reputation import Reputation
from llmesh.net.artifact import Source, open_source
from llmesh.net.host import PeerAddress
from llmesh.net.sessions import Sessions
from llmesh.net.throttle import Throttle

__all__ = ["Suppliers"]

log = logging.getLogger(__name__)

OPENING = 60.0
"""Seconds until a supplier has given its manifest; it may have to hash the model first."""

POLLED = 8
"""Suppliers asked for their manifest at once."""

SECOND_OPINIONS = 2.0
"""Seconds given to the others once one of them has answered."""

FINDING = 10.0

QUEUEING = 600.0
"""Seconds to wait for a place while every supplier is busy; whoever wants less cancels."""


class Suppliers:
    """Those who offer `model`, but never `own`; `throttle` caps what they send."""

    def __init__(
        self,
        model: ModelId,
        own: PeerId,
        sessions: Sessions,
        offers: Offers,
        reputation: Reputation,
        throttle: Throttle,
    ) -> None:
        self._model = model
        self._own = own
        self._sessions = sessions
        self._offers = offers
        self._reputation = reputation
        self._throttle = throttle
        self._expelled: set[PeerId] = set()
        self._pauses: dict[PeerId, Backoff] = {}
        self._gave: dict[PeerId, Manifest] = {}
        self._set_aside: set[Manifest] = set()
        self._failures: dict[PeerId, MeshError] = {}

    async def agree(self) -> Manifest:
        """The manifest that most of a few suppliers give, the best of them asked at once.

        While all of them are busy it waits and asks again, for QUEUEING seconds at most.

        Raises ModelNotFound where nobody offers the model, NodeBusy or NodeUnreachable where none of
        them answers.
        """
        give_up_at = trio.current_time() + QUEUEING
        while True:
            contacts = await self._find()
            await self._poll(contacts[:POLLED])
            votes = Counter(m for peer, m in self._gave.items() if self._may_serve(peer, m))
            if votes:
                return votes.most_common(1)[0][0]
            failure = self._failure(len(contacts))
            if not isinstance(failure, NodeBusy) or trio.current_time() >= give_up_at:
                raise failure
            log.info("all who give model %s are busy; they are asked again", self._model)
            # What they ask for within reason: one of them may say a month, or a millisecond.
            await trio.sleep(min(max(failure.retry_after or FINDING, 1.0), FINDING))

    def ready(self, manifest: Manifest, besides: Collection[PeerId]) -> list[PeerAddress]:
        """Whom to turn to now for blocks of that manifest, best first."""
        now = trio.current_time()
        return [
            contact
            for contact in self._contacts()
            if contact.peer_id not in besides
            and self._gave.get(contact.peer_id, manifest) == manifest
            and (contact.peer_id not in self._pauses or self._pauses[contact.peer_id].next_at <= now)
        ]

    def remain(self, manifest: Manifest) -> bool:
        """Whether anyone may still give blocks of that manifest, now or later."""
        return any(self._gave.get(each.peer_id, manifest) == manifest for each in self._contacts())

    def set_aside(self, manifest: Manifest) -> None:
        """Nothing can be had of that manifest; nobody is to blame."""
        self._set_aside.add(manifest)

    def refute(self, manifest: Manifest, why: str) -> None:
        """Expel all who gave a manifest that has been found to be false."""
        self._set_aside.add(manifest)
        for peer in [peer for peer, gave in self._gave.items() if gave == manifest]:
            self._expel(peer, why)

    @asynccontextmanager
    async def open(self, contact: PeerAddress) -> AsyncGenerator[Source]:
        """Open a supplier; how that ends is noted in its favour or against it, and raised."""
        try:
            async with AsyncExitStack() as stack:
                with trio.move_on_after(OPENING) as scope:
                    session = await self._sessions.to(contact.peer_id, contact.addresses)
                    opening = open_source(session, self._model, self._throttle)
                    source = await stack.enter_async_context(opening)
                if scope.cancelled_caught:
                    raise NodeUnreachable(f"{contact.peer_id} gave no manifest in {OPENING:.0f} s.")
                self._gave[contact.peer_id] = source.manifest
                yield source
        except MeshError as error:
            self._note(contact.peer_id, error)
            raise

    def _contacts(self) -> list[PeerAddress]:
        """All that may be asked: best standing first, then most stake."""
        ranked: dict[PeerId, tuple[Trust, int, PeerAddress]] = {}
        for _, announcement in self._offers.lookup(ModelRef("", id=self._model)):
            peer = announcement.peer_id
            if peer != self._own and peer not in self._expelled:
                contact = PeerAddress(peer, announcement.addresses)
                ranked[peer] = (self._reputation.trust(peer), -announcement.stake.micro, contact)
        best = sorted(ranked.values(), key=lambda each: (*each[:2], each[2].peer_id))
        return [contact for trust, _, contact in best if trust is not Trust.DISGRACED]

    async def _find(self) -> list[PeerAddress]:
        """All that may be asked, looked for in the mesh if none is known.  Raises ModelNotFound."""
        if not self._contacts():
            with trio.move_on_after(FINDING):
                await self._offers.find(ModelRef("", id=self._model))
        contacts = self._contacts()
        if not contacts:
            raise ModelNotFound(f"Nobody in good standing is known to give the files of {self._model}.")
        return contacts

    def _failure(self, asked: int) -> MeshError:
        """Why no manifest came of `asked` suppliers."""
        failures = list(self._failures.values())
        if failures and all(isinstance(failure, NodeBusy) for failure in failures):
            return failures[-1]
        why = f": {failures[-1].message}" if failures else "."
        return NodeUnreachable(f"None of {asked} providers gives the files of {self._model}{why}")

    async def _poll(self, contacts: list[PeerAddress]) -> None:
        """Get the manifests of those who answer in time."""

        async def ask(contact: PeerAddress) -> None:
            with suppress(MeshError):  # noted by `open`
                async with self.open(contact):
                    scope.deadline = min(scope.deadline, trio.current_time() + SECOND_OPINIONS)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for contact in contacts:
                    self._gave.pop(contact.peer_id, None)
                    nursery.start_soon(ask, contact)

    def _may_serve(self, peer: PeerId, manifest: Manifest) -> bool:
        return peer not in self._expelled and manifest not in self._set_aside

    def _note(self, peer: PeerId, error: MeshError) -> None:
        """What a failure says about the peer; failures of our own say nothing."""
        self._failures[peer] = error
        match error:
            case ValidationFailed() if error.peer_id == peer and not error.remote:
                self._expel(peer, error.message)
            case NodeBusy():
                self._reputation.busy(peer, error.retry_after)
                self._pause(peer)
            case NetworkError() | NodeUnreachable():
                self._reputation.failed(peer)
                self._pause(peer)
            case _ if error.remote:
                self._pause(peer)

    def _pause(self, peer: PeerId) -> None:
        self._pauses.setdefault(peer, Backoff(1.0, 10.0)).failed(trio.current_time())

    def _expel(self, peer: PeerId, why: str) -> None:
        log.warning("%s gives wrong files of model %s and is dropped: %s", peer, self._model, why)
        self._reputation.disgraced(peer)
        self._expelled.add(peer)
