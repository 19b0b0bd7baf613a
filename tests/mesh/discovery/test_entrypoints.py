"""What this node leaves in the hash table, and that the table's troubles stay its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.announcement import SignedAnnouncement
from llmesh.core.ids import PeerId
from llmesh.core.reference import ModelRef
from llmesh.errors import NetworkError, ValidationFailed
from llmesh.mesh.entrypoints import EPOCH, EntryPoints, entry_key
from llmesh.net.host import PeerAddress

if TYPE_CHECKING:
    from tests.mesh.discovery.conftest import Mesh

OpenMesh: TypeAlias = "Callable[..., AbstractAsyncContextManager[Mesh]]"
ME, OTHER = PeerId("me"), PeerAddress(PeerId("other"), ("/ip4/192.0.2.7/tcp/1",))
STARTED = 1_700_000_000


class Table:
    """A hash table that remembers what was asked of it."""

    def __init__(self) -> None:
        self.puts: list[tuple[float, bytes]] = []
        self.provided: list[tuple[float, bytes]] = []
        self.entries: dict[bytes, list[PeerAddress]] = {}
        self.trouble: Exception | None = None
        self.slow = 0.0

    async def work(self) -> None:
        await trio.sleep(self.slow)
        if self.trouble is not None:
            raise self.trouble

    async def put(self, peer: PeerId, record: bytes) -> bool:
        await self.work()
        self.puts.append((trio.current_time(), record))
        return True

    async def get(self, peer: PeerId) -> bytes | None:
        return None

    async def provide(self, key: bytes) -> bool:
        await self.work()
        self.provided.append((trio.current_time(), key))
        return True

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        await self.work()
        return self.entries.get(key, [])


@asynccontextmanager
async def storing(table: Table, *records: SignedAnnouncement) -> AsyncGenerator[EntryPoints]:
    points = EntryPoints(ME, table, lambda: STARTED + trio.current_time(), Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(points.run)
        for record in records:
            points.publish(record)
            await trio.sleep(100)
        yield points
        nursery.cancel_scope.cancel()


async def records_of(mesh: OpenMesh, *names: str) -> list[SignedAnnouncement]:
    """What a node announces that offers these models, one more each time."""
    records = []
    async with mesh() as m:
        node = await m.node(0)
        for name in names:
            node.announcer.offer(m.offer(name, model=name))
            record = node.discovery.directory.held(node.peer_id)
            assert record is not None
            records.append(record)
    return records


async def test_each_key_once_and_the_record_once_until_it_is_time(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    first, more = await records_of(mesh, "senti", "gpt")
    table = Table()
    now = STARTED + trio.current_time()
    async with storing(table, first, more):
        assert len(table.puts) == 1, "its addresses have not changed"
        assert table.puts[0][1] == first.packed
        ids = [offer.model_id for offer in more.announcement.offers]
        texts = ["senti", ids[0], "gpt", ids[1]]
        assert [key for _, key in table.provided] == [entry_key(text, now) for text in texts]
        assert min(b - a for a, b in pairwise(at for at, _ in table.provided)) >= 1.0
        await trio.sleep(4 * 3600)
        assert table.puts[1][1] == more.packed
        assert len(table.provided) == 8


async def test_a_new_epoch_has_new_keys(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    (record,) = await records_of(mesh, "senti")
    table = Table()
    async with storing(table, record):
        await trio.sleep(EPOCH + 600)
        now = STARTED + trio.current_time()
        keys = {key for _, key in table.provided}
        assert {entry_key("senti", now), entry_key("senti", now - EPOCH)} <= keys


@pytest.mark.parametrize("trouble", [NetworkError("gone"), ValidationFailed("expired"), None])
async def test_trouble_is_tried_again_and_harms_nothing(
    mesh: OpenMesh, autojump_clock: MockClock, trouble: Exception | None
) -> None:
    (record,) = await records_of(mesh, "senti")
    table = Table()
    table.trouble, table.slow = trouble, 1000.0 if trouble is None else 0.0
    async with storing(table, record) as points:
        started = trio.current_time()
        assert await points.find(ModelRef("senti")) == []
        assert trio.current_time() - started <= 8
        table.trouble, table.slow = None, 0.0
        await points.store()
        assert len(table.puts) == 1
        assert len(table.provided) == 2


async def test_entries_of_this_epoch_and_the_last_are_found_without_oneself(
    autojump_clock: MockClock,
) -> None:
    table = Table()
    third = PeerAddress(PeerId("third"), ())
    table.entries[entry_key("senti", STARTED)] = [OTHER, PeerAddress(ME, ())]
    table.entries[entry_key("senti", STARTED - EPOCH)] = [OTHER, third]
    points = EntryPoints(ME, table, lambda: STARTED, Random(1))
    found = await points.find(ModelRef("senti"))
    assert sorted(each.peer_id for each in found) == ["other", "third"]
