"""Meshes of nodes that only discover: real sessions in memory, real signatures, virtual time."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from random import Random

import nacl.signing
import pytest
import trio

from llmesh import crypto
from llmesh.core.amount import Amount
from llmesh.core.announcement import DOMAIN, Offer
from llmesh.core.binding import DOMAIN as BINDING
from llmesh.core.credentials import Credentials
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.mesh.announcer import Announcer, Author
from llmesh.mesh.discovery import Discovery, DiscoverySettings, open_discovery
from llmesh.mesh.entrypoints import entry_key
from llmesh.mesh.events import Events
from llmesh.mesh.peers import Limits
from llmesh.net.call import Call, Handler
from llmesh.net.directory import PROTOCOL
from llmesh.net.host import PeerAddress
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.sessions import Sessions, open_sessions
from tests.mesh.people import CHAIN, signer

NAME = "sentiment-analyzer"
STARTED = 1_700_000_000


def clock() -> float:
    """Virtual seconds since 1970."""
    return STARTED + trio.current_time()


@cache
def seed(number: int) -> bytes:
    return hashlib.sha256(f"node {number}".encode()).digest()


@cache
def peer(number: int) -> PeerId:
    return PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed(number)).verify_key)))


def credentials_of(number: int) -> Credentials:
    return Credentials(peer(number), CHAIN, signer(str(number)), partial(crypto.sign, seed(number), BINDING))


def offer(name: str = NAME, fee: str = "0.1", model: str = "m") -> Offer:
    return Offer(
        ModelId(hashlib.sha256(model.encode()).hexdigest()),
        Card(name),
        "text-classification",
        Amount.parse(fee),
    )


async def mute(call: Call, message: bytes) -> None:
    await trio.lowlevel.checkpoint()


@dataclass
class Squatter:
    number: int
    host: MemoryHost
    sessions: Sessions

    @property
    def contact(self) -> PeerAddress:
        return PeerAddress(self.host.peer_id, self.host.addresses)


@dataclass
class Node:
    number: int
    host: MemoryHost
    discovery: Discovery
    announcer: Announcer
    events: Events

    @property
    def peer_id(self) -> PeerId:
        return self.host.peer_id

    @property
    def contact(self) -> PeerAddress:
        return PeerAddress(self.peer_id, self.host.addresses)

    def providers(self, name: str = NAME) -> set[PeerId]:
        """Who offers the model, as this node sees it."""
        return {a.peer_id for _, a in self.discovery.lookup(ModelRef(name))}


@dataclass
class Mesh:
    """Nodes by number; a number brought up again is the same node restarted."""

    network: MemoryNetwork
    nursery: trio.Nursery
    nodes: dict[int, Node] = field(default_factory=dict)
    sequences: Callable[[], int] = field(default_factory=lambda: count(1).__next__)
    _scopes: dict[int, trio.CancelScope] = field(default_factory=dict)

    offer = staticmethod(offer)
    seed = staticmethod(seed)

    async def node(
        self, number: int, *knows: Node | Squatter, limits: Limits | None = None, min_stake: str = "0"
    ) -> Node:
        return await self.nursery.start(self._run, number, knows, limits or Limits(), Amount.parse(min_stake))

    async def squatter(self, number: int, name: str, answer: Handler = mute) -> Squatter:
        """A peer that holds a place of the name in the hash table; as a rule it answers with nothing."""
        return await self.nursery.start(self._squat, number, name, answer)

    def kill(self, node: Node) -> None:
        """As SIGKILL does: nothing is said."""
        self.network.kill(node.peer_id)
        self._scopes.pop(node.number).cancel()
        del self.nodes[node.number]

    async def _run(
        self,
        number: int,
        knows: tuple[Node | Squatter, ...],
        limits: Limits,
        min_stake: Amount,
        task_status: trio.TaskStatus[Node],
    ) -> None:
        settings = DiscoverySettings(
            bootstrap=[node.contact for node in knows],
            limits=limits,
            clock=clock,
            rng=Random(number),
            events=Events(),
        )
        with trio.CancelScope() as self._scopes[number]:
            async with (
                self.network.host(peer(number)) as host,
                open_discovery(host, {}, settings) as discovery,
                trio.open_nursery() as nursery,
            ):
                announcer = Announcer(
                    Author(
                        host.peer_id,
                        lambda payload: crypto.sign(seed(number), DOMAIN, payload),
                        self.sequences,
                        lambda: host.addresses,
                        credentials_of(number),
                    ),
                    discovery,
                    stake=Amount.parse(1000),
                    min_stake=min_stake,
                    rng=Random(number),
                )
                nursery.start_soon(announcer.run)
                self.nodes[number] = Node(number, host, discovery, announcer, settings.events)
                task_status.started(self.nodes[number])
                await trio.sleep_forever()

    async def _squat(
        self, number: int, name: str, answer: Handler, task_status: trio.TaskStatus[Squatter]
    ) -> None:
        handlers = {PROTOCOL: answer}
        async with self.network.host(peer(number)) as host, open_sessions(host, handlers) as sessions:
            await host.dht.provide(entry_key(name, clock()))
            task_status.started(Squatter(number, host, sessions))
            await trio.sleep_forever()


@pytest.fixture
def mesh() -> Callable[..., AbstractAsyncContextManager[Mesh]]:
    """Opens a mesh without nodes, for tests that run on `autojump_clock`."""

    @asynccontextmanager
    async def open_mesh(**weather: float) -> AsyncGenerator[Mesh]:
        async with trio.open_nursery() as nursery:
            yield Mesh(MemoryNetwork(1, **{"delay": 0.002, **weather}), nursery)
            nursery.cancel_scope.cancel()

    return open_mesh
