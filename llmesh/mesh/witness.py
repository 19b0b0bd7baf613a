"""Witness: sees inferences end and announcements change, and tells the events they make."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.exchange import Completed, Event
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Attempt, Consumer, InferenceRequest, Result, Usage
from llmesh.errors import MeshError, NetworkError
from llmesh.mesh.events import Events, InferenceEnded, ModelAnnounced, ModelChange, Served
from llmesh.mesh.provider import Provider
from llmesh.mesh.router import Streamed
from llmesh.mesh.tracing import traced
from llmesh.net.inference import Serve

__all__ = ["Witness", "asked", "offer_changes", "seen"]

_NOTHING = Amount(0)


@dataclass(slots=True)
class Witness:
    """Remembers the result of one inference for the event at its end."""

    result: Result | None = None

    async def watching(self, events: AsyncIterator[Streamed]) -> AsyncGenerator[Streamed]:
        """The events of a stream, with its Result remembered."""
        async for event in events:
            if isinstance(event, Result):
                self.result = event
            yield event


@contextmanager
def asked(events: Events, request: InferenceRequest) -> Iterator[Witness]:
    """Around an inference that this node asks for: tells its end, unless it is given up."""
    witness, since, error = Witness(), trio.current_time(), None
    with traced(None):
        try:
            yield witness
        except MeshError as failed:
            error = failed
            raise
        finally:
            if witness.result is not None or error is not None:
                events.tell(_ended(request, witness.result, error, trio.current_time() - since))


def seen(events: Events, provider: Provider) -> Serve:
    """The provider's `serve` for peers: tells each attempt's end, unless the peer cuts it."""

    @asynccontextmanager
    async def served(attempt: Attempt, consumer: Consumer) -> AsyncGenerator[AsyncIterator[Event]]:
        since = trio.current_time()
        with traced(attempt.trace):
            try:
                async with (
                    provider.serve(attempt, consumer) as pieces,
                    aclosing(_watched(events, provider, attempt, since, pieces)) as watched,
                ):
                    yield watched
            except NetworkError:  # the consumer has left: so it is given up
                raise
            except MeshError as error:
                events.tell(_served(provider, attempt, since, _NOTHING, error))
                raise

    return served


async def _watched(
    events: Events, provider: Provider, attempt: Attempt, since: float, pieces: AsyncIterator[Event]
) -> AsyncGenerator[Event]:
    async for piece in pieces:
        if isinstance(piece, Completed):
            events.tell(_served(provider, attempt, since, piece.fee, usage=piece.usage))
        yield piece


def offer_changes(
    author: PeerId, before: Sequence[Offer], after: Sequence[Offer]
) -> Iterator[ModelAnnounced]:
    """What it changes that a peer which offered the ones now offers the others."""
    old, new = _by_name(before), _by_name(after)
    for key, offer in new.items():
        if key not in old:
            yield ModelAnnounced(offer, author, ModelChange.APPEARED)
        elif old[key] != offer:
            yield ModelAnnounced(offer, author, ModelChange.CHANGED)
    for key, offer in old.items():
        if key not in new:
            yield ModelAnnounced(offer, author, ModelChange.GONE)


def _by_name(offers: Sequence[Offer]) -> dict[tuple[ModelId, str, str], Offer]:
    return {(offer.model_id, offer.card.name, offer.card.version): offer for offer in offers}


def _served(
    provider: Provider,
    attempt: Attempt,
    since: float,
    fee: Amount,
    error: MeshError | None = None,
    usage: Usage = Usage(),  # noqa: B008 - frozen
) -> InferenceEnded:
    names = {offer.model_id: offer.card.name for offer in provider.offers}
    return InferenceEnded(
        attempt.request_id,
        Served.PEER,
        names.get(attempt.model_id, ""),
        attempt.model_id,
        provider.peer_id,
        fee,
        (trio.current_time() - since) * 1000,
        error,
        usage,
    )


def _ended(
    request: InferenceRequest, result: Result | None, error: MeshError | None, seconds: float
) -> InferenceEnded:
    return InferenceEnded(
        request.id,
        Served.CALLER,
        str(request.model),
        result.model_id if result else request.model.id,
        result.provider if result else None,
        result.fee if result else _NOTHING,
        result.latency_ms if result else seconds * 1000,
        error,
        result.usage if result else Usage(),
    )
