"""News spread at once and once; what hostile peers say is not believed and costs little."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.query import Get, Hint, News, Record, Search
from llmesh.errors import NodeBusy
from llmesh.net.directory import ask, tell

if TYPE_CHECKING:
    from tests.mesh.discovery.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[..., AbstractAsyncContextManager[Mesh]]"


def count_news(node: Node) -> list[News]:
    """Every News that the node hears from now on."""
    heard: list[News] = []
    hear = node.discovery._gossip.hear

    async def listen(news: News, giver: object) -> None:
        heard.append(news)
        await hear(news, giver)  # type: ignore[arg-type]

    node.discovery._gossip.hear = listen  # type: ignore[method-assign]
    return heard


async def test_a_change_reaches_each_node_about_once(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0)] + [await m.node(n, first) for n in range(1, 20)]
        await trio.sleep(20)
        heard = [count_news(node) for node in nodes]
        nodes[3].announcer.offer(m.offer())
        await trio.sleep(2)
        assert all(node.providers() for node in nodes)
        records = sum(len(news.records) for each in heard for news in each)
        hints = sum(len(news.hints) for each in heard for news in each)
        assert records <= 3 * len(nodes)
        assert hints <= 12 * len(nodes)
        before = [len(each) for each in heard]
        await trio.sleep(60)
        assert [len(each) for each in heard] == before, "nothing is said while nothing changes"


async def test_a_renewal_is_left_to_sync(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0)] + [await m.node(n, first) for n in range(1, 6)]
        nodes[3].announcer.offer(m.offer())
        await trio.sleep(30)
        heard = [count_news(node) for node in nodes]
        before = nodes[0].discovery.directory.held(nodes[3].peer_id)
        await trio.sleep(900)
        after = [node.discovery.directory.held(nodes[3].peer_id) for node in nodes]
        assert all(len(news.hints) == 0 for each in heard for news in each), "only what Sync found wanted"
        assert before is not None
        assert all(
            held is not None and held.announcement.sequence > before.announcement.sequence for held in after
        )
        assert all(node.discovery._sync.settled for node in nodes)


async def test_a_long_record_travels_by_hint_and_get(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0)] + [await m.node(n, first) for n in range(1, 6)]
        await trio.sleep(5)
        heard = [count_news(node) for node in nodes]
        for number in range(5):
            nodes[1].announcer.offer(m.offer(f"model-{number}", model=f"{number}"))
        await trio.sleep(1)
        assert all(node.providers("model-4") for node in nodes)
        assert any(news.hints and not news.records for each in heard for news in each)


async def test_forged_replayed_and_expired_news_are_not_believed(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        a, b, liar = [first := await m.node(0), await m.node(1, first), await m.node(2, first)]
        b.announcer.offer(m.offer())
        await trio.sleep(1)
        old = b.discovery.directory.held(b.peer_id)
        b.announcer.offer(m.offer("newer", model="newer"))
        await trio.sleep(1)
        new = b.discovery.directory.held(b.peer_id)
        assert old is not None
        assert new is not None
        forged = new.payload.replace(b'"sequence":2', b'"sequence":9')
        assert forged != new.payload
        session = await liar.discovery.sessions.to(a.peer_id, a.host.addresses)
        lies = (Record(forged, new.signature), Record.of(old), Record(b"{}", bytes(64)))
        await tell(session, News(records=lies), 5)
        assert a.discovery.directory.held(b.peer_id) == new
        await trio.sleep(1900)  # what b says now has replaced it; a replay of the expired is refused too
        await tell(session, News(records=(Record.of(old), Record.of(new))), 5)
        held = a.discovery.directory.held(b.peer_id)
        assert held is not None
        assert held.announcement.sequence > new.announcement.sequence
        assert a.discovery.sessions.get(liar.peer_id) is not None


async def test_hints_of_what_does_not_exist_hold_up_nothing(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        a, b, liar = [first := await m.node(0), await m.node(1, first), await m.node(2, first)]
        await trio.sleep(1)
        session = await liar.discovery.sessions.to(a.peer_id, a.host.addresses)
        await tell(session, News(hints=(Hint(b.peer_id, 1 << 40),)), 5)
        b.announcer.offer(m.offer())
        await trio.sleep(1)
        assert a.providers() == {b.peer_id}


async def test_who_asks_too_often_is_told_to_wait(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        a = await m.node(0)
        pest = await m.node(1, a)
        await trio.sleep(1)
        session = await pest.discovery.sessions.to(a.peer_id)

        async def pester() -> None:
            for _ in range(300):
                await tell(session, Search("x"), 5)

        with pytest.raises(NodeBusy) as busy:
            await pester()
        assert busy.value.remote
        assert busy.value.retry_after == 1.0
        await trio.sleep(5)
        async with ask(session, Get(()), 5) as answers:
            assert [answer async for answer in answers] == []
