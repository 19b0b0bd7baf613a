"""Events: what happens at this node, told to whoever subscribes.

Telling never waits: each subscription has a bounded queue of its own, which loses its oldest when
its reader is slow and counts what it lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Usage
from llmesh.errors import MeshError
from llmesh.mesh.download import Progress

__all__ = [
    "CAPACITY",
    "EventName",
    "Events",
    "InferenceEnded",
    "MeshEvent",
    "ModelAnnounced",
    "ModelChange",
    "ModelDeployed",
    "PeerChange",
    "PeerUpdated",
    "Served",
    "Subscription",
    "Told",
    "TransferProgressed",
]

_NO_USAGE = Usage()
CAPACITY = 256
"""Events that wait for one subscriber; the oldest goes when one more comes."""


class EventName(StrEnum):
    """What may be subscribed to."""

    INFERENCE = "inference"
    PEER_UPDATE = "peer_update"
    MODEL_ANNOUNCE = "model_announce"
    TRANSFER = "transfer"
    MODEL_DEPLOYED = "model_deployed"


class Served(StrEnum):
    """Whom an inference was for: this node's own caller, or a peer."""

    CALLER = "caller"
    PEER = "peer"


class PeerChange(StrEnum):
    """NEW: heard of for the first time; UP, DOWN: a session with it is there, is over."""

    NEW = "new"
    UP = "up"
    DOWN = "down"


class ModelChange(StrEnum):
    """What became of an offer; CHANGED is a new fee, description or variant."""

    APPEARED = "appeared"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class InferenceEnded:
    """An inference is over: `error` is None if it was answered, and so is `provider` where nobody took it.

    `model` is what was asked for; `latency_ms` counts from when this node heard of it.
    """

    name: ClassVar[EventName] = EventName.INFERENCE
    request_id: RequestId
    served: Served
    model: str
    model_id: ModelId | None
    provider: PeerId | None
    fee: Amount
    latency_ms: float
    error: MeshError | None = None
    usage: Usage = _NO_USAGE


@dataclass(frozen=True, slots=True)
class PeerUpdated:
    """A peer was heard of, has come, or has gone."""

    name: ClassVar[EventName] = EventName.PEER_UPDATE
    peer_id: PeerId
    change: PeerChange


@dataclass(frozen=True, slots=True)
class ModelAnnounced:
    """An offer of the mesh appeared, changed or went."""

    name: ClassVar[EventName] = EventName.MODEL_ANNOUNCE
    offer: Offer
    provider: PeerId
    change: ModelChange


@dataclass(frozen=True, slots=True)
class TransferProgressed:
    """How far a model is that this node fetches."""

    name: ClassVar[EventName] = EventName.TRANSFER
    progress: Progress


@dataclass(frozen=True, slots=True)
class ModelDeployed:
    """This node serves a model from now on, or on new terms."""

    name: ClassVar[EventName] = EventName.MODEL_DEPLOYED
    offer: Offer


MeshEvent: TypeAlias = InferenceEnded | PeerUpdated | ModelAnnounced | TransferProgressed | ModelDeployed


@dataclass(frozen=True, slots=True)
class Told:
    """An event, and how many before it were lost since the last one that was read."""

    event: MeshEvent
    dropped: int


class Subscription:
    """The events of the names in `names`, which may be changed at any time; iterating waits for the next.

    Events told while nobody reads wait here, as many as there is room for.
    """

    def __init__(self, names: Collection[EventName], capacity: int) -> None:
        self.names = set(names)
        self._capacity = capacity
        self._waiting: deque[MeshEvent] = deque()
        self._dropped = 0
        self._woken = trio.Event()

    def tell(self, event: MeshEvent) -> None:
        """Queue an event if it is wanted; never waits."""
        if event.name not in self.names:
            return
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        self._woken.set()

    def taken(self) -> list[Told]:
        """All that waits; it is read with that."""
        found, self._dropped = [Told(event, 0) for event in self._waiting], 0
        self._waiting.clear()
        return found

    def __aiter__(self) -> AsyncIterator[Told]:
        return self

    async def __anext__(self) -> Told:
        while not self._waiting:
            self._woken = trio.Event()
            await self._woken.wait()
        told = Told(self._waiting.popleft(), self._dropped)
        self._dropped = 0
        return told


class Events:
    """Where this node's parts tell what happens, and others hear of it; `hear` hears all, and at once."""

    def __init__(self, hear: Callable[[MeshEvent], None] | None = None) -> None:
        self._hear = hear
        self._subscriptions: set[Subscription] = set()

    def tell(self, event: MeshEvent) -> None:
        """Tell all who want to know; never waits and never fails."""
        if self._hear is not None:
            self._hear(event)
        for subscription in self._subscriptions:
            subscription.tell(event)

    @contextmanager
    def subscribed(self, names: Collection[EventName], capacity: int = CAPACITY) -> Iterator[Subscription]:
        """What happens from now on; nothing is told after the block."""
        subscription = Subscription(names, capacity)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
