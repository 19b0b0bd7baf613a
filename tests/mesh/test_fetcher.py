"""Models going from node to node: real stores and sessions, the network in memory."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import BLOCK, Block, Manifest
from llmesh.core.model import Card
from llmesh.core.ranking import Trust
from llmesh.core.reference import ModelRef
from llmesh.errors import Conflict, ModelNotFound, NodeBusy, NodeUnreachable, TooLarge, ValidationFailed
from llmesh.mesh import download as download_module
from llmesh.mesh.download import Progress
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.seeder import SeederLimits, open_seeder
from llmesh.net.artifact import PROTOCOL, Replica, Serve, handler
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.sessions import open_sessions
from llmesh.net.throttle import Throttle
from llmesh.runtime import blocks as blocks_module
from llmesh.runtime.bundle import Bundle, read_bundle
from llmesh.runtime.store import Store, open_store

US = PeerId("us")
NAME = ModelRef.parse("big")


@pytest.fixture(autouse=True)
def patient_clock(autojump_clock: MockClock) -> MockClock:
    """Virtual time, which stands still while threads read and write."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


def make_model(folder: Path, size: int = 5 * BLOCK + 1234, seed: int = 1) -> Path:
    """A bundle of random bytes that is an ONNX file as far as anyone looks, with a file beside it."""
    rng = random.Random(seed)
    (folder / "vocab").mkdir(parents=True)
    body = rng.randbytes(size)
    length, varint = len(body), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    (folder / "model.onnx").write_bytes(b"\x3a\0\x12" + varint + bytes([length]) + body)
    (folder / "vocab/words.txt").write_bytes(rng.randbytes(BLOCK))
    (folder / "vocab/empty.txt").write_bytes(b"")
    return folder


class Board:
    """Everyone's offers."""

    def __init__(self) -> None:
        self.known: dict[PeerId, Announcement] = {}

    def lookup(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        return [
            (offer, a)
            for a in self.known.values()
            for offer in a.offers
            if (offer.model_id == ref.id if ref.id else offer.card.name == ref.name)
        ]

    async def find(self, ref: ModelRef) -> None:
        await trio.sleep(1)


@dataclass
class Mesh:
    """Nodes around one model, and what went over the wire by (peer, block)."""

    stack: AsyncExitStack
    bundle: Bundle
    folder: Path
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    board: Board = field(default_factory=Board)
    sent: Counter[tuple[PeerId, Block]] = field(default_factory=Counter)
    progress: list[Progress] = field(default_factory=list)

    async def add(
        self,
        name: str,
        *,
        twist: Callable[[Serve], Serve] = lambda serve: serve,
        rate: float | None = None,
        stake: int = 0,
        limits: SeederLimits | None = None,
    ) -> PeerId:
        """A node that offers the model; `twist` may spoil what it serves."""
        peer = PeerId(name)
        host = await self.stack.enter_async_context(self.network.host(peer))
        seeder = await self.stack.enter_async_context(
            open_seeder(lambda id: self.bundle if id == self.bundle.id else None, limits or SeederLimits())
        )
        serve = twist(counted(seeder.serve, peer, self.sent))
        await self.stack.enter_async_context(open_sessions(host, {PROTOCOL: handler(serve, Throttle(rate))}))
        self.announce(host, stake)
        return peer

    def announce(self, host: MemoryHost, stake: int = 0) -> None:
        offer = Offer(self.bundle.id, Card("big"), "raw-tensors", Amount(0))
        self.board.known[host.peer_id] = Announcement(
            host.peer_id, 1, host.addresses, (offer,), Amount(stake), 0, 1 << 40
        )

    @asynccontextmanager
    async def us(self, quota: int = 1 << 30, rate: float | None = None) -> AsyncGenerator[Node]:
        """The node that fetches; each time a new process on the same disk."""
        reputation = Reputation(lambda _: False)
        async with self.network.host(US) as host, open_sessions(host, {}) as sessions:
            store = await open_store(self.folder, quota)
            fetcher = Fetcher(US, store, sessions, self.board, reputation, Throttle(rate))
            yield Node(fetcher, store, reputation, self.progress)

    @property
    def times(self) -> Counter[Block]:
        """How often each block was sent in full."""
        return Counter(block for (_, block), n in self.sent.items() for _ in range(n))


@dataclass
class Node:
    fetcher: Fetcher
    store: Store
    reputation: Reputation
    progress: list[Progress]

    async def fetch(self, ref: ModelRef = NAME) -> Bundle:
        return await self.fetcher.fetch(ref, self.progress.append)


@dataclass
class Twisted:
    """A replica with one thing wrong."""

    manifest: Manifest
    read: Callable[[Block], object]


def twisted(
    manifest: Callable[[Manifest], Manifest] = lambda m: m,
    data: Callable[[Block, bytes], bytes] = lambda _, d: d,
    pause: Callable[[Block], float] = lambda _: 0.0,
) -> Callable[[Serve], Serve]:
    def twist(serve: Serve) -> Serve:
        @asynccontextmanager
        async def other(model: ModelId, peer: PeerId) -> AsyncGenerator[Replica]:
            async with serve(model, peer) as replica:

                async def read(block: Block) -> bytes:
                    await trio.sleep(pause(block))
                    return data(block, await replica.read(block))

                yield Twisted(manifest(replica.manifest), read)  # type: ignore[misc]

        return other

    return twist


def counted(serve: Serve, peer: PeerId, sent: Counter[tuple[PeerId, Block]]) -> Serve:
    def count(block: Block, data: bytes) -> bytes:
        sent[peer, block] += 1
        return data

    return twisted(data=count)(serve)


def false_digests(manifest: Manifest) -> Manifest:
    first, *rest = manifest.files
    return Manifest((replace(first, digests=(bytes(32), *first.digests[1:])), *rest))


@asynccontextmanager
async def swarm(tmp_path: Path, size: int = 5 * BLOCK + 1234) -> AsyncGenerator[Mesh]:
    bundle = await read_bundle(make_model(tmp_path / "theirs", size))
    async with AsyncExitStack() as stack:
        yield Mesh(stack, bundle, tmp_path / "ours")


def same_files(ours: Bundle, theirs: Bundle) -> bool:
    return ours.id == theirs.id and all(
        (ours.folder / f.path).read_bytes() == (theirs.folder / f.path).read_bytes() for f in theirs.files
    )


async def test_a_model_comes_whole_from_one_provider(tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh:
        peer = await mesh.add("a")
        async with mesh.us() as node:
            bundle = await node.fetch()
            assert same_files(bundle, mesh.bundle)
            assert [stored.id for stored in node.store.models()] == [bundle.id]
            assert list((mesh.folder / "staging").iterdir()) == []
            assert await node.fetch(ModelRef("", id=bundle.id)) == bundle
    assert set(mesh.times.values()) == {1}
    assert mesh.progress[-1].done == mesh.progress[-1].total == sum(f.size for f in bundle.files)
    assert any(p.sources == (peer,) for p in mesh.progress)
    assert sorted(p.done for p in mesh.progress) == [p.done for p in mesh.progress]
