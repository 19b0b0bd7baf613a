"""One session in use per peer, whoever dialled, whatever is cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from llmesh.core.frames import Hello
from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, NodeUnreachable
from llmesh.net.call import Call
from llmesh.net.host import Link
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.session import Session
from llmesh.net.sessions import LINGER, MAX_PER_PEER, Sessions, open_sessions
from llmesh.wire.session import encode

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


async def echo(call: Call, message: bytes) -> None:
    await call.send(message)


async def hold(_link: Link) -> None:
    await trio.sleep_forever()


async def hang(_call: Call, _message: bytes) -> None:
    await trio.sleep_forever()


class Node:
    """A host with its sessions, and what it was told of changes."""

    def __init__(self, host: MemoryHost) -> None:
        self.host = host
        self.sessions: Sessions
        self.changes: list[tuple[str, PeerId]] = []

    def changed(self, session: Session, opened: bool) -> None:
        self.changes.append(("opened" if opened else "over", session.peer_id))

    async def to(self, other: Node) -> Session:
        return await self.sessions.to(other.host.peer_id, other.host.addresses)


@asynccontextmanager
async def nodes(network: MemoryNetwork, *peers: PeerId) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        made = []
        for peer in peers:
            node = Node(await stack.enter_async_context(network.host(peer)))
            handlers = {"/echo": echo, "/hang": hang}
            opening = open_sessions(node.host, handlers, node.changed)
            node.sessions = await stack.enter_async_context(opening)
            made.append(node)
        yield made


async def ask(session: Session, message: bytes = b"hi") -> bytes:
    async with session.call("/echo", message) as call:
        return await call.receive()


async def test_one_session_serves_both_sides(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(), A, B) as (a, b):
        session = await a.to(b)
        back = await b.sessions.to(A)
        assert await a.to(b) is session
        assert await ask(session) == await ask(back) == b"hi"
        assert a.sessions.live() == [session]
        assert b.sessions.live() == [back]
        assert len(a.host.links) == len(b.host.links) == 1


async def test_changes_are_told_once_per_peer(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(), A, B, C) as (a, b, c):
        await a.to(b)
        await a.to(c)
        assert a.changes == [("opened", B), ("opened", C)]
        (await a.to(b)).close()
        await trio.testing.wait_all_tasks_blocked()
        assert a.changes[2:] == [("over", B)]
        assert b.changes == [("opened", A), ("over", A)]
        assert a.sessions.get(B) is None
        assert b.sessions.live() == []
        await b.to(a)
        assert a.changes[3:] == [("opened", B)]


async def test_a_session_that_ended_is_dialled_anew(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A) as (a,):
        async with nodes(network, B) as (b,):
            first = await a.to(b)
            network.kill(B)
            await trio.testing.wait_all_tasks_blocked()
            assert a.sessions.get(B) is None
        async with nodes(network, B) as (b,):
            second = await a.to(b)
            assert second is not first
            assert await ask(second) == b"hi"


async def test_the_first_call_finds_its_callers_session(autojump_clock: MockClock) -> None:
    """Even where hello and call arrive in one piece."""
    network = MemoryNetwork()
    found: list[Session | None] = []
    async with network.host(A) as a, network.host(B) as b:

        async def look(call: Call, _message: bytes) -> None:
            found.append(sessions.get(call.peer_id))

        async with open_sessions(b, {"/look": look}) as sessions, open_sessions(a, {}) as ours:
            session = await ours.to(B, b.addresses)
            async with session.call("/look", b"") as call:
                with pytest.raises(trio.EndOfChannel):
                    await call.receive()
    assert found
    assert found[0] is not None


# --- dialling ---------------------------------------------------------------------------------


async def test_callers_share_one_dial(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(delay=0.1), A, B) as (a, b):
        got: list[Session] = []

        async def want() -> None:
            got.append(await a.to(b))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(want)
        assert len(set(map(id, got))) == 1
        assert len(b.host.links) == 1


async def test_a_cancelled_caller_leaves_the_dial_to_the_others(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(delay=0.1), A, B) as (a, b):
        got: list[Session] = []

        async def want() -> None:
            got.append(await a.to(b))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05) as impatient:
                nursery.start_soon(want)
                await a.to(b)
            assert impatient.cancelled_caught
        assert len(got) == 1
        assert await ask(got[0]) == b"hi"


async def test_a_dial_that_nobody_wants_any_more_stops(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(delay=0.1), A, B) as (a, b):
        with trio.move_on_after(0.05):
            await a.to(b)
        await trio.sleep(5)
        assert not a.host.links
        assert not b.host.links
        assert await ask(await a.to(b)) == b"hi"


async def test_who_cannot_be_reached(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A, B, C) as (a, b, c):
        for addresses in ((), ("/ip4/10.9.9.9/tcp/1",), c.host.addresses):
            with pytest.raises(NodeUnreachable) as caught:
                await a.sessions.to(B, addresses)
            assert caught.value.peer_id == B
        with pytest.raises(NodeUnreachable, match="itself"):
            await a.to(a)
        network.freeze(B)
        with pytest.raises(NodeUnreachable), trio.fail_after(4):
            await a.to(b)
        network.thaw(B)
        assert await ask(await a.to(b)) == b"hi"


async def test_a_dead_first_address_does_not_matter(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A, B, C) as (a, b, c):
        network.freeze(C)
        addresses = (*c.host.addresses, *b.host.addresses)
        with trio.fail_after(4):
            assert await ask(await a.sessions.to(B, addresses)) == b"hi"


async def test_a_caller_with_better_addresses_is_not_bound_to_the_shared_dial(
    autojump_clock: MockClock,
) -> None:
    async with nodes(MemoryNetwork(delay=0.1), A, B) as (a, b), trio.open_nursery() as nursery:

        async def knows_nothing() -> None:
            with pytest.raises(NodeUnreachable):
                await a.sessions.to(B, ("/ip4/10.9.9.9/tcp/1",))

        nursery.start_soon(knows_nothing)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await ask(await a.to(b)) == b"hi"


async def test_a_peer_that_accepts_and_says_nothing(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A) as (a,), network.host(B) as b:
        b.serve(hold)
        start = trio.current_time()
        with pytest.raises(NodeUnreachable):
            await a.sessions.to(B, b.addresses)
        assert trio.current_time() - start == pytest.approx(10)
        await trio.testing.wait_all_tasks_blocked()
        assert not a.changes


# --- two dial each other ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_two_that_dial_each_other_keep_one_session(autojump_clock: MockClock, seed: int) -> None:
    async with nodes(MemoryNetwork(seed=seed, delay=0.05, jitter=0.1), A, B) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.to, b)
            nursery.start_soon(b.to, a)
        await trio.sleep(1)
        ours, theirs = a.sessions.get(B), b.sessions.get(A)
        assert ours is not None
        assert theirs is not None
        assert ours.initiator is not theirs.initiator
        await trio.sleep(2 * LINGER)
        assert len(a.host.links) == len(b.host.links) == 1
        assert a.sessions.get(B) is ours
        assert await ask(ours) == await ask(theirs) == b"hi"
        assert a.changes == [("opened", B)]
        assert b.changes == [("opened", A)]


async def test_the_session_that_gives_way_finishes_its_calls(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(), A, B) as (a, b), trio.open_nursery() as nursery:
        second = await b.to(a)  # B dialled; A's own dial will take its place
        answered = trio.Event()

        async def long() -> None:
            async with second.call("/hang", b"") as call:
                with trio.move_on_after(60):
                    await call.receive()
                await call.send(b"still there")
            answered.set()

        nursery.start_soon(long)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(open_another, a, b)
        await trio.sleep(30)
        assert a.sessions.get(B) is not None
        assert b.sessions.get(A) is not second
        assert not second.spent
        await answered.wait()
        await trio.sleep(2 * LINGER)
        assert second.spent
        nursery.cancel_scope.cancel()


async def open_another(a: Node, b: Node) -> None:
    """What A's dial would have brought, had it begun before B's came in."""
    link = await a.host.dial(B, b.host.addresses)
    await a.sessions.accept(link)


async def test_one_peer_cannot_open_sessions_without_end(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A) as (a,), network.host(B) as b:
        links = []
        for _ in range(MAX_PER_PEER + 2):
            link = await b.dial(A, a.host.addresses)
            await link.write(encode(Hello("many", "", ())))
            links.append(link)
        await trio.testing.wait_all_tasks_blocked()
        assert len(a.host.links) == MAX_PER_PEER
        assert a.changes == [("opened", B)]


# --- the end ----------------------------------------------------------------------------------


async def test_leaving_closes_sessions_and_their_calls(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with nodes(network, A) as (a,):
        async with nodes(network, B) as (b,):
            session = await a.to(b)
            async with session.call("/hang", b"") as call:
                await trio.testing.wait_all_tasks_blocked()
                b.sessions._nursery.cancel_scope.cancel()
                with pytest.raises(NetworkError):
                    await call.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert a.sessions.live() == []
        assert not a.host.links


async def test_two_thousand_sessions_come_and_go(autojump_clock: MockClock) -> None:
    async with nodes(MemoryNetwork(), A, B) as (a, b):
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(2000):
            session = await a.to(b)
            assert await ask(session) == b"hi"
            session.close()
            await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert not a.host.links
        assert not b.host.links
        assert not a.sessions._sessions
        assert not a.sessions._dials
