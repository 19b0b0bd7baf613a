"""Comparisons with peers that make much of them."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from llmesh.core.query import Answer, News, Record, Sync
from llmesh.errors import MeshError
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
