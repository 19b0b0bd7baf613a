"""Models going from node to node: real stores and sessions, the network in memory."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmesh.core import manifest as manifest_module
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import Block, Manifest, block_digest
from llmesh.core.model import Card
from llmesh.core.ranking import Trust
from llmesh.core.reference import ModelRef
from llmesh.errors import Conflict, ModelNotFound, NodeBusy, NodeUnreachable, TooLarge, ValidationFailed
from llmesh.mesh import seeder as seeder_module
from llmesh.mesh.download import Progress
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.seeder import SeederLimits, open_seeder
from llmesh.net.artifact import PROTOCOL, Replica, Serve, handler
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.sessions import open_sessions
from llmesh.net.throttle import Throttle
from llmesh.runtime import blocks as blocks_module
from llmesh.runtime.blocks import held_blocks, make_manifest
from llmesh.runtime.bundle import Bundle, read_bundle
from llmesh.runtime.store import Store, open_store

US = PeerId("us")
BLOCK = 100_000
NAME = ModelRef.parse("big")


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in the loop what is done in threads: virtual time does not wait for those."""

    async def run_sync(work: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(trio._path, "run_sync", run_sync)
    monkeypatch.setattr(trio.from_thread, "check_cancelled", lambda: None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a model of many blocks is quickly made."""
    monkeypatch.setattr(manifest_module, "BLOCK", BLOCK)
    monkeypatch.setattr(blocks_module, "BLOCK", BLOCK)


def make_model(folder: Path, size: int = 20 * BLOCK + 1234, seed: int = 1) -> Path:
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

    nursery: trio.Nursery
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

        async def run(task_status: trio.TaskStatus[MemoryHost]) -> None:
            async with (
                self.network.host(peer) as host,
                open_seeder(self.offered, limits or SeederLimits()) as seeder,
            ):
                serve = twist(counted(seeder.serve, peer, self.sent))
                async with open_sessions(host, {PROTOCOL: handler(serve, Throttle(rate))}):
                    task_status.started(host)
                    await trio.sleep_forever()

        self.announce(await self.nursery.start(run), stake)
        return peer

    def offered(self, model: ModelId) -> Bundle | None:
        """What every node but ours offers."""
        return self.bundle if model == self.bundle.id else None

    def alter(self, text: str) -> None:
        """Change the providers' files under them."""
        (self.bundle.folder / "model.onnx").write_text(text)

    def partial(self) -> Path:
        return self.folder / "staging" / f"{self.bundle.id}.partial"

    async def held(self) -> set[Block]:
        """What of the model is on our disk and right."""
        manifest = await trio.to_thread.run_sync(make_manifest, self.bundle)
        return await trio.to_thread.run_sync(held_blocks, self.partial(), manifest)

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
    def size(self) -> int:
        """Bytes of the model."""
        return sum(file.size for file in self.bundle.files)

    @property
    def all_blocks(self) -> set[Block]:
        """Every block of the model."""
        return {Block(f.path, n) for f in self.bundle.files for n in range(-(-f.size // BLOCK))}

    @property
    def blocks(self) -> int:
        """How many those are."""
        return len(self.all_blocks)

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


def lie(block: Block, data: bytes) -> bytes:
    """Something else for the third block of the graph, and the truth otherwise."""
    return bytes(len(data)) if block == Block("model.onnx", 2) else data


def lying_manifest(manifest: Manifest) -> Manifest:
    """The one to which that lie leads."""
    first, *rest = manifest.files
    assert first.file.path == "model.onnx"
    false = block_digest(bytes(BLOCK))
    return Manifest((replace(first, digests=(*first.digests[:2], false, *first.digests[3:])), *rest))


@asynccontextmanager
async def swarm(tmp_path: Path, size: int = 20 * BLOCK + 1234) -> AsyncGenerator[Mesh]:
    bundle = await read_bundle(make_model(tmp_path / "theirs", size))
    async with trio.open_nursery() as nursery:
        yield Mesh(nursery, bundle, tmp_path / "ours")
        nursery.cancel_scope.cancel()


def same_files(ours: Bundle, theirs: Bundle) -> bool:
    return ours.id == theirs.id and all(
        (ours.folder / f.path).read_bytes() == (theirs.folder / f.path).read_bytes() for f in theirs.files
    )


async def interrupted(mesh: Mesh, share: float) -> set[Block]:
    """Begin to fetch, be cancelled when so much is there; what is then on disk and right."""
    async with mesh.us() as node:
        with trio.CancelScope() as scope:

            def report(progress: Progress) -> None:
                if progress.done >= share * progress.total:
                    scope.cancel()

            await node.fetcher.fetch(NAME, report)
        assert scope.cancelled_caught
    return await mesh.held()


async def test_a_model_comes_whole_from_one_provider(autojump_clock: MockClock, tmp_path: Path) -> None:
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


async def test_several_providers_share_the_work(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh:
        for name in "abc":
            await mesh.add(name, rate=500_000)
        async with mesh.us() as node:
            start = trio.current_time()
            assert same_files(await node.fetch(), mesh.bundle)
        assert trio.current_time() - start < 0.5 * mesh.size / 500_000
    assert {peer for peer, _ in mesh.sent} == {"a", "b", "c"}
    assert mesh.times.total() <= mesh.blocks + 3


@pytest.mark.parametrize("seed", range(8))
async def test_sources_that_are_killed_at_any_moment_are_replaced(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with swarm(tmp_path) as mesh, trio.open_nursery() as nursery:
        for name in "abcd":
            await mesh.add(name, rate=rng.choice([300_000, 600_000, 1_200_000]))

        async def kill(peer: PeerId, moment: float) -> None:
            await trio.sleep(moment)
            rng.choice([mesh.network.kill, mesh.network.freeze])(peer)

        for name in "abc":
            nursery.start_soon(kill, PeerId(name), rng.uniform(0, 4))
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)


async def test_a_provider_that_comes_later_takes_part(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh, mesh.us() as node, trio.open_nursery() as nursery:
        await mesh.add("a", rate=200_000)
        start = trio.current_time()

        async def later() -> None:
            await trio.sleep(3)
            await mesh.add("b")

        nursery.start_soon(later)
        assert same_files(await node.fetch(), mesh.bundle)
        assert trio.current_time() - start < 0.6 * mesh.size / 200_000


# --- what goes on where it ended ----------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.97])
async def test_a_cancelled_fetch_resumes_and_nothing_verified_is_sent_again(
    autojump_clock: MockClock, tmp_path: Path, share: float
) -> None:
    async with swarm(tmp_path) as mesh:
        for name in "abc":
            await mesh.add(name, rate=1_000_000)
        held = await interrupted(mesh, share)
        mesh.sent.clear()
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)
    assert sum(n for block, n in mesh.times.items() if block in held) == 0
    assert set(mesh.times) | held == mesh.all_blocks


async def test_what_was_torn_on_disk_is_fetched_again_and_only_that(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("a")
        before = await interrupted(mesh, 0.6)
        with (mesh.partial() / "model.onnx").open("r+b") as file:
            file.seek(3 * BLOCK + 5)
            file.write(b"torn")
        held = await mesh.held()
        assert before - held == {Block("model.onnx", 3)}
        mesh.sent.clear()
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)
    assert set(mesh.times) == mesh.all_blocks - held


async def test_when_all_sources_go_for_good_the_fetch_ends_and_can_be_resumed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with swarm(tmp_path) as mesh, trio.open_nursery() as nursery:
        await mesh.add("a", rate=500_000)
        async with mesh.us() as node:

            async def kill() -> None:
                await trio.sleep(2)
                mesh.network.kill(PeerId("a"))

            nursery.start_soon(kill)
            with pytest.raises(NodeUnreachable, match="providers"):
                await node.fetch()
            held = await mesh.held()
            assert len(held) > 5
            mesh.sent.clear()
            await mesh.add("b")
            assert same_files(await node.fetch(), mesh.bundle)
    assert set(mesh.times) == mesh.all_blocks - held


# --- liars and loafers --------------------------------------------------------------------------


async def test_a_liar_is_dropped_named_and_loses_its_standing(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with swarm(tmp_path) as mesh:
        liar = await mesh.add("liar", twist=twisted(data=lambda _, data: bytes(len(data))), stake=9)
        honest = await mesh.add("honest", rate=500_000)
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)
            assert node.reputation.trust(liar) is Trust.DISGRACED
            assert node.reputation.trust(honest) is Trust.GOOD
    assert mesh.times.total() <= mesh.blocks + 4
    (line,) = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert line.startswith("liar ")


async def test_a_lone_liar_gets_nowhere_and_what_was_right_stays(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("liar", twist=twisted(data=lie))
        async with mesh.us() as node:
            with pytest.raises(ModelNotFound, match="good standing"):
                await node.fetch()
            assert await mesh.held() == {Block("model.onnx", 0), Block("model.onnx", 1)}
            assert node.store.models() == []


async def test_a_false_manifest_costs_all_who_gave_it_their_standing(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Most of the providers agree on a lie, which shows only in the end; then the truth is fetched."""
    async with swarm(tmp_path) as mesh:
        for name in ("liar1", "liar2"):
            await mesh.add(name, twist=twisted(manifest=lying_manifest, data=lie))
        await mesh.add("honest")
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)
            standing = {peer: node.reputation.trust(PeerId(peer)) for peer in ("liar1", "liar2", "honest")}
    assert standing == {"liar1": Trust.DISGRACED, "liar2": Trust.DISGRACED, "honest": Trust.GOOD}
    assert {block for peer, block in mesh.sent if peer == "honest"} == {Block("model.onnx", 2)}
    assert "do not lead to model.onnx" in caplog.text


async def test_a_minority_with_a_false_manifest_is_not_asked_for_blocks(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("liar", twist=twisted(manifest=lying_manifest, data=lie), stake=9)
        for name in ("honest1", "honest2"):
            await mesh.add(name)
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)
    assert "liar" not in {peer for peer, _ in mesh.sent}


async def test_a_manifest_of_nothing_but_promises_is_set_aside(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The most common manifest's givers never give a block; another manifest's do."""
    async with swarm(tmp_path) as mesh:
        for name in ("mute1", "mute2"):
            await mesh.add(name, twist=twisted(manifest=lying_manifest, pause=lambda _: 1e6))
        await mesh.add("honest")
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)


async def test_a_slow_source_does_not_hold_up_the_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("slow", rate=5_000, stake=9)
        await mesh.add("quick", rate=1_000_000)
        async with mesh.us() as node:
            start = trio.current_time()
            assert same_files(await node.fetch(), mesh.bundle)
            assert trio.current_time() - start < 2 * mesh.size / 1_000_000 + 3


@pytest.mark.parametrize("asked", [5.0, 1e6])
async def test_a_fetch_ends_where_no_provider_ever_has_a_place(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: float
) -> None:
    monkeypatch.setattr("llmesh.mesh.seeder.RETRY_AFTER", asked)
    async with swarm(tmp_path) as mesh:
        await mesh.add("full", limits=SeederLimits(transfers=0))
        async with mesh.us() as node:
            start = trio.current_time()
            with pytest.raises(NodeBusy) as caught:
                await node.fetch()
            assert caught.value.retry_after == asked
            assert 600 <= trio.current_time() - start < 700


async def test_a_fetch_waits_while_all_providers_are_busy(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh, trio.open_nursery() as nursery:
        await mesh.add("full", limits=SeederLimits(transfers=0))

        async def join_late() -> None:
            await trio.sleep(20)
            await mesh.add("free")

        nursery.start_soon(join_late)
        async with mesh.us() as node:
            assert same_files(await node.fetch(), mesh.bundle)


# --- bounds -------------------------------------------------------------------------------------


async def test_a_model_over_the_quota_is_refused_before_a_block_comes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("a")
        async with mesh.us(quota=mesh.size - 1) as node:
            with pytest.raises(TooLarge):
                await node.fetch()
        async with mesh.us(quota=mesh.size) as node:
            await node.fetch()
    assert mesh.times.total() == mesh.blocks


async def test_a_full_disk_ends_the_fetch_and_loses_nothing(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm(tmp_path) as mesh:
        for name in "ab":
            await mesh.add(name)
        real, written = os.pwrite, 0

        def pwrite(handle: int, data: bytes, offset: int) -> int:
            nonlocal written
            written += len(data)
            if written > 8 * BLOCK:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data, offset)

        async with mesh.us() as node:
            with monkeypatch.context() as full:
                full.setattr(os, "pwrite", pwrite)
                with pytest.raises(Conflict, match="disk is full"):
                    await node.fetch()
            assert node.store.models() == []
            held = await mesh.held()
            assert 5 < len(held) <= 8
            mesh.sent.clear()
            assert same_files(await node.fetch(), mesh.bundle)
            assert node.reputation.trust(PeerId("a")) is Trust.GOOD
    assert held.isdisjoint(mesh.times)


@pytest.mark.parametrize("capped", ["fetching", "serving"])
async def test_a_bandwidth_cap_holds(autojump_clock: MockClock, tmp_path: Path, capped: str) -> None:
    async with swarm(tmp_path) as mesh:
        rate = 400_000.0
        await mesh.add("a", rate=rate if capped == "serving" else None)
        if capped == "fetching":
            await mesh.add("b")
        async with mesh.us(rate=rate if capped == "fetching" else None) as node:
            start = trio.current_time()
            await node.fetch()
            took = trio.current_time() - start
    assert 0.9 * mesh.size / rate < took < 1.5 * mesh.size / rate + 3
    assert max(p.rate for p in mesh.progress[5:]) < 1.5 * rate


async def test_one_model_is_fetched_once_at_a_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh:
        await mesh.add("a", rate=500_000)
        async with mesh.us() as node, trio.open_nursery() as nursery:
            nursery.start_soon(node.fetch)
            await trio.sleep(2)
            with pytest.raises(Conflict, match="already"):
                await node.fetch()


async def test_nobody_to_ask_is_said_so(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with swarm(tmp_path) as mesh, mesh.us() as node:
        with pytest.raises(ModelNotFound, match="No valid offer"):
            await node.fetch()
        with pytest.raises(ModelNotFound, match="known to give"):
            await node.fetch(ModelRef("", id=mesh.bundle.id))
        mesh.announce(mesh.network.hosts[US])
        with pytest.raises(ModelNotFound, match="known to give"):
            await node.fetch()


async def test_what_is_no_bundle_is_an_error_and_no_fault_of_its_giver(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (make_model(tmp_path / "theirs") / "other.onnx").write_bytes(b"\x3a\0")
    folder = (tmp_path / "theirs").resolve()
    (folder / "model.onnx").rename(folder / "third.onnx")
    (folder / "config.json").write_text("{}")
    bundle = await read_bundle(folder / "other.onnx")
    async with trio.open_nursery() as nursery:
        mesh = Mesh(nursery, bundle, tmp_path / "ours")
        peer = await mesh.add("a")
        async with mesh.us() as node:
            with pytest.raises(ValidationFailed, match="several graphs"):
                await node.fetch()
            assert node.reputation.trust(peer) is Trust.GOOD
        nursery.cancel_scope.cancel()


# --- the giving side ----------------------------------------------------------------------------


async def test_files_that_changed_under_us_are_not_given_away(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with swarm(tmp_path) as mesh:
        peer = await mesh.add("a", rate=500_000)
        async with mesh.us() as node:
            with trio.move_on_after(2):
                await node.fetch()
            mesh.alter("something else")
            with pytest.raises(NodeUnreachable, match="no files"):
                await node.fetch()
            assert node.reputation.trust(peer) is not Trust.DISGRACED
    assert "no longer given away" in caplog.text


async def test_a_manifest_is_made_once_even_if_its_first_asker_goes(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def slow(bundle: Bundle) -> Manifest:
        nonlocal made
        made += 1
        time.sleep(0.05)
        return make_manifest(bundle)

    monkeypatch.setattr(seeder_module, "make_manifest", slow)
    bundle = await read_bundle(make_model(tmp_path / "m"))
    async with open_seeder(lambda _: bundle) as seeder, trio.open_nursery() as nursery:

        async def ask(peer: str) -> None:
            async with seeder.serve(bundle.id, PeerId(peer)) as replica:
                assert replica.manifest.model_id == bundle.id

        with trio.CancelScope() as scope:
            nursery.start_soon(ask, "b")
            scope.cancel()
            await ask("a")
        assert scope.cancelled_caught
        await ask("c")
    assert made == 1


async def test_places_are_bounded_and_given_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    bundle = await read_bundle(make_model(tmp_path / "m"))
    offered: list[Bundle | None] = [bundle]
    async with open_seeder(lambda _: offered[0], SeederLimits(3, 2)) as seeder, AsyncExitStack() as stack:

        async def take(peer: str) -> None:
            await stack.enter_async_context(seeder.serve(bundle.id, PeerId(peer)))

        await take("a")
        await take("a")
        with pytest.raises(NodeBusy):
            await take("a")
        await take("b")
        with pytest.raises(NodeBusy):
            await take("c")
        await stack.aclose()
        await take("c")
        offered[0] = None
        with pytest.raises(ModelNotFound):
            await take("d")
