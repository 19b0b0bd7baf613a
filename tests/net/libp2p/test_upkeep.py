"""Connections stay few and streams bounded."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from llmesh.net.libp2p import upkeep as upkeep_module

KAD = "/ipfs/kad/1.0.0"


async def echo(link):
    while True:
        await link.write(await link.read())


async def connect(here, there):
    return await here._swarm.dial_addr(Multiaddr(there.addresses[0]), ID.from_string(there.peer_id))


async def test_a_lookup_leaves_few_connections_and_every_session(open_hosts, monkeypatch):
    monkeypatch.setattr(upkeep_module, "IDLE_KEPT", 2)
    async with open_hosts(8) as hosts:
        here, friend, *others = hosts
        friend.serve(echo)
        link = await here.dial(friend.peer_id, friend.addresses)
        for other in others:
            await connect(here, other)
        assert here.connection_count == 7
        await here.dht.get(friend.peer_id)
        assert here.connection_count <= 3
        await link.write(b"still here")
        assert await link.read() == b"still here"


async def test_whoever_just_dialled_us_is_given_time(open_hosts, monkeypatch):
    monkeypatch.setattr(upkeep_module, "IDLE_KEPT", 0)
    async with open_hosts(2) as (here, there):
        await connect(there, here)
        await here.dht._upkeep.prune()
        assert here.connection_count == 1
        monkeypatch.setattr(upkeep_module, "PATIENCE_SECONDS", 0.0)
        await here.dht._upkeep.prune()
        assert here.connection_count == 0


async def test_streams_left_open_by_cancelled_queries_are_reset(open_hosts):
    async with open_hosts(2) as (here, there):
        friend = ID.from_string(there.peer_id)
        there.serve(echo)
        link = await here.dial(there.peer_id, there.addresses)
        muxer = here._swarm.get_connections(friend)[0].muxed_conn
        for _ in range(5):
            await here._host.new_stream(friend, [KAD])
        slots = muxer.stream_backlog_semaphore.value
        await here.dht._upkeep.sweep()
        assert muxer.stream_backlog_semaphore.value == slots, "they may still be in use"
        await here.dht._upkeep.sweep()
        assert muxer.stream_backlog_semaphore.value == slots + 5
        await link.write(b"still here")
        assert await link.read() == b"still here"


@pytest.mark.parametrize(("limit", "value"), [("MAX_STREAMS", 20), ("MAX_UNREAD_BYTES", 20_000)])
async def test_a_peer_that_floods_us_is_cut_off(open_hosts, eventually, monkeypatch, limit, value):
    monkeypatch.setattr(upkeep_module, limit, value)
    monkeypatch.setattr(upkeep_module, "WATCH_SECONDS", 0.05)
    async with open_hosts(2) as (here, hostile):
        await connect(hostile, here)
        await trio.sleep(0.2)
        assert here.connection_count == 1, "a quiet peer stays"

        async def unread(stream):
            await trio.sleep_forever()

        here._host.set_stream_handler("/flood", unread)
        victim = ID.from_string(here.peer_id)
        with suppress(StreamFailure, StreamError):  # cut off while it floods
            for _ in range(25 if limit == "MAX_STREAMS" else 1):
                stream = await hostile._host.new_stream(victim, ["/flood"])
            await stream.write(bytes(30_000))
        await eventually(lambda: not here.connection_count)


async def test_nobody_is_dialled_that_nobody_asked_for(open_hosts):
    """libp2p's own connector would call up whoever it has heard of."""
    async with open_hosts(2) as (here, there):
        peer = ID.from_string(there.peer_id)
        here._host.get_peerstore().add_addrs(peer, [Multiaddr(there.addresses[0])], 3600)
        await here._swarm.auto_connector.maybe_connect()
        assert here.connection_count == 0


async def test_those_who_left_are_forgotten(open_hosts, eventually, monkeypatch):
    monkeypatch.setattr(upkeep_module, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(upkeep_module, "SWEEP_SECONDS", 0.05)
    async with open_hosts(1) as (here,):
        left = here._swarm.auto_connector._recent_disconnects
        left.update((ID(number.to_bytes(4, "big")), 0.0) for number in range(1000))
        await eventually(lambda: not left)
