"""Provider: the models this node has on offer, and serving attempts at them.

The same `serve` answers a peer (through net.inference) and this node's own router.  It admits,
runs and counts; it knows neither wire nor directory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import trio

from llmesh.core.admission import Admission, Limits, size_of
from llmesh.core.amount import Amount
from llmesh.core.announcement import MAX_VARIANT, Offer
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Attempt, Chunk, Consumer, Usage
from llmesh.core.model import Card, ModelInfo
from llmesh.core.payment import Answer, Question, Reconcile
from llmesh.core.peering import Pace
from llmesh.core.pricing import FREE, check_quote
from llmesh.core.receipt import SignedReceipt
from llmesh.core.reference import model_name, model_version
from llmesh.errors import Conflict, ModelFailed, ModelNotFound, NodeBusy, RequestTimeout
from llmesh.mesh.till import Bill, Till
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.runtime import Runtime

__all__ = ["Provider"]

QUESTIONS = 32, 0.5
"""Questions about money of one peer: so many at once, then one in so many seconds."""

_DEFAULT = Limits()


class Provider:
    """Serves attempts at this node's models; `peer_id` is this node's."""

    def __init__(self, peer_id: PeerId, runtime: Runtime, till: Till, limits: Limits = _DEFAULT) -> None:
        self.peer_id = peer_id
        self._runtime = runtime
        self._till = till
        self._offers: dict[ModelId, Offer] = {}
        self._bundles: dict[ModelId, Bundle] = {}
        self._infos: dict[ModelId, ModelInfo] = {}
        self._admission = Admission(limits, peer_id)
        self._pace = Pace(*QUESTIONS)

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What is on offer now, the latest last."""
        return tuple(self._offers.values())

    def info(self, model: ModelId) -> ModelInfo | None:
        """What a model on offer here takes and gives; None for one that is not."""
        return self._infos.get(model) if model in self._offers else None

    def bundle(self, model: ModelId) -> Bundle | None:
        """Where the files of a model on offer are; None for one that is not."""
        return self._bundles.get(model) if model in self._offers else None

    @property
    def running(self) -> int:
        """Attempts under way."""
        return self._admission.running

    async def deploy(self, bundle: Bundle, card: Card, fee: Amount) -> Offer:
        """Load a model and put it on offer; one that is on offer gets the new card and fee.

        Raises ValidationFailed for what is no model or no name, Conflict where another model is on
        offer under this name and version, or another graph of this one.  Cancelled, it leaves no offer.
        """
        self._check_card(bundle.id, card)
        self._check_graph(bundle)
        info = await self._runtime.load(bundle)
        self._check_card(bundle.id, card)  # another may have come while it loaded
        self._offers.pop(info.id, None)
        offer = self._offers[info.id] = Offer(
            info.id, card, info.task, fee, info.variant[:MAX_VARIANT], info.execution
        )
        self._bundles[info.id], self._infos[info.id] = bundle, info
        return offer

    async def remove(self, model: ModelId) -> None:
        """Take a model off offer and out of memory; attempts under way fail with ModelFailed.

        Raises ModelNotFound for one that is not on offer.
        """
        if self._offers.pop(model, None) is None:
            raise _not_here(model)
        self._bundles.pop(model, None)
        self._infos.pop(model, None)
        await self._runtime.unload(model)

    @asynccontextmanager
    async def serve(self, attempt: Attempt, consumer: Consumer) -> AsyncGenerator[AsyncIterator[Event]]:
        """Run an attempt; the block gets Accepted, chunks and Completed, in this order.

        Entering means accepted.  Raises ModelNotFound (also where the fee is above the quote),
        TooLarge, NodeBusy, ValidationFailed on entering, and for work that costs something what
        `Till.billing` raises; ModelFailed later; RequestTimeout when the attempt's time has passed;
        TransactionFailed where a charge cannot be made durable.  Completed has the receipt, with no
        charge for this node's own requests or for no answer.  Leaving the block early or cancelling it
        stops the work.
        """
        if not attempt.timeout > 0:  # not a number counts as over too
            raise RequestTimeout("The time for the attempt had passed before it came.")
        offer = self._offers.get(attempt.model_id)
        if offer is None:
            raise _not_here(attempt.model_id)
        own = consumer.peer_id == self.peer_id
        if not own:
            check_quote(offer, attempt.quote)
        fee = FREE if own else offer.fee
        with self._place(attempt, consumer) as accepted:
            async with self._till.billing(attempt, consumer, offer, fee) as bill:
                with self._limited(attempt):
                    async with self._answered(bill, accepted) as events:
                        yield events

    async def answer(self, question: Question, consumer: Consumer) -> Answer:
        """What a peer asks about money: whether an offer holds, or how its channel stands.

        Raises ModelNotFound and NodeBusy for what would not be served now, NodeBusy for a peer that asks
        too often; otherwise as `Till.reconcile`.
        """
        if not self._pace.take(consumer.peer_id, trio.current_time()):
            raise NodeBusy("You ask too often about payment.", retry_after=QUESTIONS[1])
        if isinstance(question, Reconcile):
            return await self._till.reconcile(question, consumer)
        offer = self._offers.get(question.model)
        if offer is None:
            raise _not_here(question.model)
        check_quote(offer, question.quote)
        self._admission.check_room(consumer.peer_id)
        return self._till.confirm(offer, question.offer)

    @asynccontextmanager
    async def _answered(self, bill: Bill, accepted: Accepted) -> AsyncGenerator[AsyncIterator[Event]]:
        if bill.stored is not None:
            async with aclosing(_repeated(bill, bill.stored, accepted)) as events:
                yield events
            return
        async with (
            self._runtime.infer(bill.attempt.model_id, bill.attempt.input) as pieces,
            aclosing(self._events(bill, accepted, pieces)) as events,
        ):
            yield events

    async def _events(
        self, bill: Bill, accepted: Accepted, pieces: AsyncIterator[Chunk | Usage]
    ) -> AsyncGenerator[Event]:
        """Text passes as it comes; named values, which may be the whole answer, wait for the charge."""
        yield accepted
        chunks, usage = bill.chunks, Usage()
        held: list[Chunk] = []
        async for piece in pieces:
            if isinstance(piece, Usage):
                usage = piece
                continue
            if piece.index != len(chunks):
                raise ModelFailed(f"The worker gave chunk {piece.index} where {len(chunks)} was due.")
            chunks.append(piece)
            held.append(piece)
            while held and (len(held) > 1 or not piece.values):
                yield held.pop(0)
                bill.taken = len(chunks) - len(held)
        receipt = await self._till.settle(bill)
        for piece in held:
            yield piece
        yield Completed(usage, receipt)

    @contextmanager
    def _place(self, attempt: Attempt, consumer: Consumer) -> Iterator[Accepted]:
        """Hold one of the places; what it was like on arrival is the Accepted to send."""
        accepted = Accepted(self._admission.running, self._admission.load)
        place = self._admission.admit(consumer.peer_id, size_of(attempt.input))
        since = trio.current_time()
        try:
            yield accepted
        finally:
            self._admission.release(place, trio.current_time() - since)

    @contextmanager
    def _limited(self, attempt: Attempt) -> Iterator[None]:
        """End the attempt when its time, or the most that any attempt may take, has passed."""
        own_limit = self._admission.limits.seconds
        with trio.move_on_after(min(attempt.timeout, own_limit)) as scope:
            yield
        if scope.cancelled_caught:
            if attempt.timeout <= own_limit:
                raise RequestTimeout(f"{attempt.timeout:.3g} s passed before the model had answered.")
            raise ModelFailed(f"The model ran for {own_limit:.0f} s, the most that this node allows.")

    def _check_card(self, model: ModelId, card: Card) -> None:
        model_name(card.name)
        model_version(card.version)
        for offer in self._offers.values():
            same = (offer.card.name, offer.card.version) == (card.name, card.version)
            if same and offer.model_id != model:
                raise Conflict(
                    f"{card.name}:{card.version} is model {offer.model_id} here;"
                    f" remove that first, or give {model} another version."
                )

    def _check_graph(self, bundle: Bundle) -> None:
        """One model runs one graph here, and goes on to run it over restarts."""
        before = self.bundle(bundle.id)
        if before is not None and before.graph != bundle.graph:
            raise Conflict(
                f"{before.graph} of model {bundle.id} is on offer here;"
                f" remove that first to serve {bundle.graph} of it."
            )


def _not_here(model: ModelId) -> ModelNotFound:
    return ModelNotFound(f"This node does not serve model {model}.")


async def _repeated(bill: Bill, receipt: SignedReceipt, accepted: Accepted) -> AsyncGenerator[Event]:
    """What was answered and charged before, as far as it is kept."""
    yield accepted
    if bill.output is not None:
        yield Chunk(0, values=bill.output)
    yield Completed(Usage(), receipt)
