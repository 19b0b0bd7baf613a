"""Comparisons with peers that make much of them."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import trio

from llmesh.core.ids import PeerId
from llmesh.core.peering import Pace
from llmesh.core.query import Answer, News, Record, Sync
from llmesh.errors import MeshError
from llmesh.mesh.gossip import PENDING
from llmesh.mesh.peers import TRIED
from llmesh.mesh.sync import COMPARING
from llmesh.wire.directory import decode_query, encode_answer

NOTHING = Answer((Record(b"{}", bytes(64)),))


@pytest.mark.parametrize("said", [Answer(), NOTHING])
async def test_a_peer_that_never_comes_to_an_end_is_left(mesh, said, autojump_clock):
    async def endless(call, message):
        with trio.move_on_after(COMPARING + 60) as whatever_it_is_told, suppress(MeshError):
            whatever_it_is_told.shield = True
            while True:
                await call.send(encode_answer(said))
                await trio.sleep(1)

    async with mesh() as m:
        node = await m.node(1)
        drip = await m.squatter(2, "x", endless)
        session = await node.discovery.sessions.to(drip.host.peer_id, drip.host.addresses)
        with trio.fail_after(COMPARING + 10):
            assert not await node.discovery._sync.compare(session)


async def test_a_peer_that_wants_a_record_again_and_again_gets_it_once(mesh, autojump_clock):
    given = []

    async def greedy(call, message):
        query = decode_query(message)
        if isinstance(query, News):
            given.extend(query.records)
        elif isinstance(query, Sync):
            wanted = [bytes(8), *query.known] * 100
            await call.send(encode_answer(Answer(NOTHING.records, None, tuple(wanted))))
            await call.send(encode_answer(Answer((), None, tuple(wanted))))

    async with mesh() as m:
        node = await m.node(1)
        node.announcer.offer(m.offer())
        greed = await m.squatter(2, "x", greedy)
        session = await node.discovery.sessions.to(greed.host.peer_id, greed.host.addresses)
        await trio.sleep(30)
        given.clear()
        node.discovery._sync._rota.forget(session.peer_id)
        await node.discovery._sync.compare(session)
        assert len(given) == 1


async def test_a_peer_that_takes_no_news_holds_few(mesh, autojump_clock):
    async def deaf(call, message):
        await trio.sleep_forever()

    async with mesh() as m:
        node = await m.node(1)
        slow = await m.squatter(2, "x", deaf)
        await node.discovery.sessions.to(slow.host.peer_id, slow.host.addresses)
        await trio.sleep(1)
        gossip = node.discovery._gossip
        gossip._overall = Pace(10**6, 1e-6)
        for number in range(2 * PENDING):
            announcement = SimpleNamespace(peer_id=PeerId(str(number)))
            gossip.spread(SimpleNamespace(announcement=announcement, payload=b""))
        (feed,) = gossip._feeds.values()
        assert list(feed.pending) == [str(number) for number in range(PENDING, 2 * PENDING)]


async def test_few_failed_dials_are_remembered(mesh, autojump_clock):
    async with mesh() as m:
        peers = (await m.node(1)).discovery._peers
        for number in range(2 * TRIED):
            peers._failed(PeerId(str(number)))
        assert len(peers._tries) == TRIED
        peers._failed(last := PeerId(str(2 * TRIED - 1)))
        assert peers._tries[last].failures == 2
