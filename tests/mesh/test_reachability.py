"""Dial-backs between in-memory nodes, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.ids import PeerId
from llmesh.errors import NodeBusy, ValidationFailed
from llmesh.mesh.reachability import DialBacks, Reachability
from llmesh.net.call import Handler
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.reachability import PROTOCOL, ask_dial_back, handler
from llmesh.net.sessions import Sessions, open_sessions
from llmesh.wire import reachability as wire

ASKER, HELPER = PeerId("asker"), PeerId("helper")


@asynccontextmanager
async def two_nodes(network: MemoryNetwork) -> AsyncGenerator[tuple[MemoryHost, Sessions]]:
    """The asker's host and its sessions, one of them with a helper that dials back."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(network.host(ASKER))
        theirs = await stack.enter_async_context(network.host(HELPER))
        handlers: dict[str, Handler] = {}
        their_sessions = await stack.enter_async_context(open_sessions(theirs, handlers))
        handlers[PROTOCOL] = handler(DialBacks(theirs, their_sessions).dial_back)
        sessions = await stack.enter_async_context(open_sessions(ours, {}))
        await sessions.to(HELPER, theirs.addresses)
        yield ours, sessions


async def test_an_address_that_answers_is_told(autojump_clock: MockClock) -> None:
    async with two_nodes(MemoryNetwork(delay=0.01)) as (ours, sessions):
        elsewhere = ours.addresses[0].replace("4001", "4002")
        session = sessions.live()[0]
        assert await ask_dial_back(session, [elsewhere, *ours.addresses]) == ours.addresses


async def test_only_the_askers_own_ip_address_is_dialled(autojump_clock: MockClock) -> None:
    dialled: list[str] = []
    network = MemoryNetwork()
    async with two_nodes(network) as (ours, sessions):
        helper = network.hosts[HELPER]

        async def reaches(peer: PeerId, address: str) -> bool:
            dialled.append(address)
            return True

        helper.reaches = reaches  # type: ignore[method-assign]
        ip = ours.addresses[0].split("/")[2]
        foreign = ["/ip4/192.0.2.1/tcp/22", f"/dns4/{ip}/tcp/22", "/ip6/::1/tcp/22", "", "/ip4/"]
        own = [f"/ip4/{ip}/tcp/{port}" for port in (1, 2, 2, 3, 4)]
        reached = await ask_dial_back(sessions.live()[0], [*foreign[:3], *own])
        assert dialled == [own[0], own[1], own[3]]
        assert set(reached) == set(dialled)
        await trio.sleep(11)
        assert await ask_dial_back(sessions.live()[0], foreign) == ()


async def test_a_peer_that_asks_too_often_is_refused(autojump_clock: MockClock) -> None:
    async with two_nodes(MemoryNetwork()) as (ours, sessions):
        session = sessions.live()[0]
        await ask_dial_back(session, ours.addresses)
        with pytest.raises(NodeBusy) as caught:
            await ask_dial_back(session, ours.addresses)
        assert 0 < (caught.value.retry_after or 0) <= 10
        await trio.sleep(10)
        assert await ask_dial_back(session, ours.addresses) == ours.addresses


async def test_a_node_learns_that_it_is_reachable(autojump_clock: MockClock) -> None:
    async with two_nodes(MemoryNetwork()) as (ours, sessions), trio.open_nursery() as nursery:
        reachability = Reachability(lambda: ours.addresses, sessions, Random(1))
        assert reachability.reached is None
        nursery.start_soon(reachability.run)
        assert await reachability.known() == ours.addresses
        nursery.cancel_scope.cancel()


async def test_a_consumer_only_asks_again_after_half_a_minute(autojump_clock: MockClock) -> None:
    async with two_nodes(MemoryNetwork()) as (ours, sessions), trio.open_nursery() as nursery:
        announced = ["/ip4/192.0.2.1/tcp/4001"]
        reachability = Reachability(lambda: announced, sessions, Random(1))
        nursery.start_soon(reachability.run)
        assert await reachability.known() == ()
        announced[:] = ours.addresses
        await trio.sleep(29)
        assert reachability.reached == ()
        await trio.sleep(2)
        assert reachability.reached == ours.addresses
        nursery.cancel_scope.cancel()


async def test_without_peers_nothing_is_known_and_a_later_peer_is_asked(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with two_nodes(network) as (ours, sessions), trio.open_nursery() as nursery:
        network.kill(HELPER)
        await trio.sleep(1)
        reachability = Reachability(lambda: ours.addresses, sessions, Random(1))
        nursery.start_soon(reachability.run)
        await trio.sleep(100)
        assert reachability.reached is None
        nursery.cancel_scope.cancel()


def test_what_comes_in_is_bounded() -> None:
    many = [f"/ip4/10.0.0.{n}/tcp/1" for n in range(50)]
    assert wire.decode_ask(wire.encode_ask(["x" * 5000, *many])) == tuple(many[:7])
    assert wire.decode_told(wire.encode_told(many)) == tuple(many[:8])
    for decode in (wire.decode_ask, wire.decode_told):
        with pytest.raises(ValidationFailed):
            decode(b"\xff\xff")
