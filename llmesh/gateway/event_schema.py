"""The JSON shapes of events: what is told over the WebSocket, one struct for each name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self, TypeAlias

from msgspec import Meta, Struct

from llmesh.core.announcement import Offer
from llmesh.core.ids import PeerId
from llmesh.errors import MeshError
from llmesh.gateway.schema import Mesh, mesh
from llmesh.mesh.download import Progress
from llmesh.mesh.events import (
    InferenceEnded,
    MeshEvent,
    ModelAnnounced,
    ModelDeployed,
    PeerUpdated,
    TransferProgressed,
)

__all__ = ["EVENT_BODIES", "EventBody", "event_body"]


class FailureBody(Struct):
    """Why an inference failed: a row of the table of errors, and what happened."""

    code: int
    name: str
    message: str

    @classmethod
    def of(cls, error: MeshError) -> Self:
        return cls(error.code, error.name, error.message)


class InferenceEvent(Struct):
    """An inference that this node asked for, or served to a peer, is over."""

    request_id: str
    served: Annotated[str, Meta(description="Whom it was for: caller (of this node) or peer.")]
    model: str
    model_id: str | None
    provider: Annotated[str | None, Meta(description="Who answered; null where it failed at the caller.")]
    fee: Mesh
    latency_ms: float
    error: Annotated[FailureBody | None, Meta(description="Null for one that was answered.")]

    @classmethod
    def of(cls, event: InferenceEnded) -> Self:
        return cls(
            request_id=event.request_id,
            served=event.served,
            model=event.model,
            model_id=event.model_id,
            provider=event.provider,
            fee=mesh(event.fee),
            latency_ms=round(event.latency_ms, 3),
            error=None if event.error is None else FailureBody.of(event.error),
        )


class PeerUpdateEvent(Struct):
    """A peer was heard of for the first time (new), is connected (up), or no longer (down)."""

    peer_id: str
    change: str


class ModelAnnounceEvent(Struct):
    """An offer of the mesh appeared, changed or is gone."""

    change: str
    provider: str
    name: str
    version: str
    model_id: str
    task: str
    fee: Mesh

    @classmethod
    def of(cls, change: str, provider: PeerId, offer: Offer) -> Self:
        return cls(
            change,
            provider,
            offer.card.name,
            offer.card.version,
            offer.model_id,
            offer.task,
            mesh(offer.fee),
        )


class TransferEvent(Struct):
    """How far a model is that this node fetches: bytes, bytes per second, and from whom."""

    model_id: str
    done: int
    total: int
    rate: int
    sources: Sequence[str]

    @classmethod
    def of(cls, progress: Progress) -> Self:
        return cls(progress.model_id, progress.done, progress.total, round(progress.rate), progress.sources)


class ModelDeployedEvent(Struct):
    """This node serves a model from now on, or on new terms."""

    model_id: str
    name: str
    version: str
    task: str
    fee: Mesh

    @classmethod
    def of(cls, offer: Offer) -> Self:
        return cls(offer.model_id, offer.card.name, offer.card.version, offer.task, mesh(offer.fee))


EventBody: TypeAlias = (
    InferenceEvent | PeerUpdateEvent | ModelAnnounceEvent | TransferEvent | ModelDeployedEvent
)
EVENT_BODIES: dict[str, type[EventBody]] = {
    InferenceEnded.name: InferenceEvent,
    PeerUpdated.name: PeerUpdateEvent,
    ModelAnnounced.name: ModelAnnounceEvent,
    TransferProgressed.name: TransferEvent,
    ModelDeployed.name: ModelDeployedEvent,
}
"""The shape of each event by its name."""


def event_body(event: MeshEvent) -> EventBody:
    """An event, ready for JSON."""
    match event:
        case InferenceEnded():
            return InferenceEvent.of(event)
        case PeerUpdated():
            return PeerUpdateEvent(event.peer_id, event.change)
        case ModelAnnounced():
            return ModelAnnounceEvent.of(event.change, event.provider, event.offer)
        case TransferProgressed():
            return TransferEvent.of(event.progress)
        case ModelDeployed():
            return ModelDeployedEvent.of(event.offer)
