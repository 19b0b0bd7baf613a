"""The network in memory keeps the promises of Host, Link and Dht, and breaks as told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, NodeUnreachable
from llmesh.net.host import Host, Link
from llmesh.net.memory import BUFFER, MemoryHost, MemoryNetwork

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


async def hold(_link: Link) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def linked(network: MemoryNetwork) -> AsyncIterator[tuple[Link, Link]]:
    """A dials B; both ends."""
    send, receive = trio.open_memory_channel[Link](1)

    async def keep(link: Link) -> None:
        await send.send(link)
        await trio.sleep_forever()

    async with network.host(A) as a, network.host(B) as b:
        b.serve(keep)
        yield await a.dial(B, b.addresses), await receive.receive()


async def read_all(link: Link, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await link.read()
    return data


async def test_both_ends_know_each_other(autojump_clock: MockClock) -> None:
    async with linked(MemoryNetwork()) as (ours, theirs):
        assert (ours.peer_id, ours.initiator) == (B, True)
        assert (theirs.peer_id, theirs.initiator) == (A, False)
        assert ours.remote_address != theirs.remote_address
        await ours.write(b"there")
        await theirs.write(b"and back")
        assert await theirs.read() == b"there"
        assert await ours.read() == b"and back"


@pytest.mark.parametrize("seed", range(3))
async def test_weather_delays_but_loses_nothing(autojump_clock: MockClock, seed: int) -> None:
    async with linked(MemoryNetwork(seed, delay=0.05, jitter=0.05, loss=0.2)) as (ours, theirs):
        rng = random.Random(seed)
        sent = [rng.randbytes(rng.randrange(1, 2000)) for _ in range(300)]
        start = trio.current_time()
        for data in sent:
            await ours.write(data)
        assert await read_all(theirs, sum(map(len, sent))) == b"".join(sent)
        assert 0.05 <= trio.current_time() - start < 1


async def test_the_same_seed_gives_the_same_weather(autojump_clock: MockClock) -> None:
    networks = [MemoryNetwork(5, delay=0.1, jitter=0.1, loss=0.3) for _ in range(2)]
    assert [networks[0].travel() for _ in range(50)] == [networks[1].travel() for _ in range(50)]


async def test_a_reader_that_stops_stops_the_writer(autojump_clock: MockClock) -> None:
    async with linked(MemoryNetwork()) as (ours, _):
        written = 0
        start = trio.current_time()
        with suppress(NetworkError):
            while True:
                await ours.write(b"x" * 60_000)
                written += 60_000
        assert written <= BUFFER + 60_000
        assert trio.current_time() - start == pytest.approx(5)


async def test_a_cancelled_read_loses_nothing(autojump_clock: MockClock) -> None:
    async with linked(MemoryNetwork(delay=0.1)) as (ours, theirs):
        for number in range(20):
            await ours.write(b"%d;" % number)
            with trio.move_on_after(0.05):
                raise AssertionError(await theirs.read())
            assert await theirs.read() == b"%d;" % number


async def test_closing_ends_both_ends(autojump_clock: MockClock) -> None:
    async with linked(MemoryNetwork()) as (ours, theirs), trio.open_nursery() as nursery:

        async def reads() -> None:
            with pytest.raises(NetworkError):
                await theirs.read()

        nursery.start_soon(reads)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        for link in (ours, theirs):
            with pytest.raises(NetworkError):
                await link.write(b"x")
            with pytest.raises(NetworkError):
                await link.read()


async def test_kill_breaks_links_at_once_and_the_peer_may_return(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with linked(network) as (ours, theirs):
        network.kill(B)
        for link in (ours, theirs):
            with pytest.raises(NetworkError):
                await link.read()
        with pytest.raises(NodeUnreachable):
            await network.hosts[A].dial(B, ("/ip4/10.0.0.2/tcp/4001",))
        async with network.host(B, "/ip4/10.0.0.2/tcp/4001") as again:
            again.serve(hold)
            assert (await network.hosts[A].dial(B, again.addresses)).peer_id == B
        assert B not in network.hosts


@pytest.mark.parametrize("how", ["freeze", "partition"])
async def test_what_hangs_comes_through_afterwards(autojump_clock: MockClock, how: str) -> None:
    network = MemoryNetwork()
    async with linked(network) as (ours, theirs):
        if how == "freeze":
            network.freeze(B)
        else:
            network.partition(A, B)
        await ours.write(b"late")
        with trio.move_on_after(60):
            raise AssertionError(await theirs.read())
        with pytest.raises(NodeUnreachable), trio.fail_after(4):
            await network.hosts[A].dial(B, network.hosts[B].addresses)
        network.thaw(B)
        network.heal()
        assert await theirs.read() == b"late"


async def test_a_close_is_not_heard_through_a_partition(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with linked(network) as (ours, theirs):
        network.partition(A, B)
        await ours.aclose()
        with trio.move_on_after(60):
            raise AssertionError(await theirs.read())
        network.heal()
        with pytest.raises(NetworkError):
            await theirs.read()


async def test_a_partition_is_between_two_only(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with linked(network) as (_, _), network.host(C) as c:
        c.serve(hold)
        network.partition(A, B)
        assert (await network.hosts[A].dial(C, c.addresses)).peer_id == C


async def test_an_address_of_somebody_else_is_refused(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with network.host(A) as a, network.host(B) as b:
        b.serve(hold)
        for peer, addresses in ((C, b.addresses), (B, ("/ip4/10.9.9.9/tcp/1",)), (B, ())):
            with pytest.raises(NodeUnreachable):
                await a.dial(peer, addresses)
        await a.hang_up(B)
        assert not a.links


async def test_hanging_up_closes_every_link(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with linked(network) as (ours, _theirs):
        await network.hosts[B].hang_up(A)
        with pytest.raises(NetworkError):
            await ours.read()


# --- the hash table ---------------------------------------------------------------------------


@asynccontextmanager
async def many(network: MemoryNetwork, count: int) -> AsyncIterator[list[MemoryHost]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(network.host(PeerId(f"P{n}"))) for n in range(count)]


async def test_records_are_found_and_replaced(autojump_clock: MockClock) -> None:
    async with many(MemoryNetwork(delay=0.01), 40) as hosts:
        assert await hosts[3].dht.get(hosts[0].peer_id) is None
        assert await hosts[0].dht.put(hosts[0].peer_id, b"old")
        assert await hosts[0].dht.put(hosts[0].peer_id, b"new")
        assert {await host.dht.get(hosts[0].peer_id) for host in hosts} == {b"new"}


async def test_entry_points_are_capped_at_the_first_twenty(autojump_clock: MockClock) -> None:
    key = bytes(32)
    async with many(MemoryNetwork(), 60) as hosts:
        assert await hosts[0].dht.find(key) == ()
        for host in hosts[:30]:
            await host.dht.provide(key)
        found = await hosts[50].dht.find(key)
        assert [entry.peer_id for entry in found] == [host.peer_id for host in hosts[:20]]
        assert found[0].addresses == hosts[0].addresses


async def test_what_is_stored_dies_with_its_holders(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with many(network, 60) as hosts:
        await hosts[0].dht.put(hosts[0].peer_id, b"record")
        holders = [host for host in hosts if host.dht.shelf.records]
        assert len(holders) == 20
        asker = next(host for host in hosts if host not in holders)
        for holder in holders[1:]:
            network.kill(holder.peer_id)
        assert await asker.dht.get(hosts[0].peer_id) == b"record"
        network.kill(holders[0].peer_id)
        assert await asker.dht.get(hosts[0].peer_id) is None


async def test_a_frozen_node_reaches_nothing(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with many(network, 3) as hosts:
        network.freeze(hosts[0].peer_id)
        assert not await hosts[0].dht.put(hosts[0].peer_id, b"x")
        assert not await hosts[0].dht.provide(bytes(32))
        assert await hosts[0].dht.get(hosts[1].peer_id) is None


def test_it_is_a_host() -> None:
    def takes(_host: Host) -> None: ...

    async def check() -> None:
        async with MemoryNetwork().host(A) as host:
            takes(host)  # for the type checker

    trio.run(check)
