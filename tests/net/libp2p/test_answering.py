"""What one peer may take of the hash table that is meant for all."""

from __future__ import annotations

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from varint import encode

from llmesh.net.host import PeerAddress
from llmesh.net.libp2p import answering as answering_module
from llmesh.net.libp2p.answering import MAX_MESSAGE_BYTES, MAX_QUERIES_PER_PEER
from llmesh.net.libp2p.peerstore import MAX_ADDRESSES


async def met(hosts):
    """All others know the first."""
    for host in hosts[1:]:
        assert await host.dht.join([PeerAddress(hosts[0].peer_id, hosts[0].addresses)]) > 0
    return hosts


async def open_query(here, there):
    return await here._host.new_stream(ID.from_string(there.peer_id), [PROTOCOL_ID])


async def is_answered(here, there, message):
    data = message.SerializeToString()
    with trio.fail_after(20):
        try:
            stream = await open_query(here, there)
            await stream.write(encode(len(data)) + data)
            answer = await stream.read(1)
            await stream.reset()
            return bool(answer)
        except (StreamFailure, StreamReset, StreamEOF):
            return False


PING = Message(type=Message.MessageType.PING)


async def test_idle_queries_of_one_peer_keep_no_other_waiting(open_hosts, eventually):
    async with open_hosts(3) as hosts:
        victim, idler, other = await met(hosts)
        await eventually(lambda: not victim.dht._answering._asking)
        idle = [await open_query(idler, victim) for _ in range(MAX_QUERIES_PER_PEER)]
        await eventually(lambda: victim.dht._answering._asking.total() == len(idle))
        assert not await is_answered(idler, victim, PING)
        assert await is_answered(other, victim, PING)
        for stream in idle:
            await stream.reset()
        await eventually(lambda: not victim.dht._answering._asking)


async def test_more_idle_queries_than_libp2p_answers_at_once_keep_nobody_waiting(open_hosts):
    async with open_hosts(4) as hosts:
        victim, *idlers, other = await met(hosts)
        for idler in idlers:
            for _ in range(MAX_QUERIES_PER_PEER):
                await open_query(idler, victim)
        assert await is_answered(other, victim, PING)


async def test_an_idle_query_ends(open_hosts, monkeypatch):
    monkeypatch.setattr(answering_module, "QUERY_SECONDS", 0.2)
    async with open_hosts(2) as hosts:
        victim, idler = await met(hosts)
        stream = await open_query(idler, victim)
        with trio.fail_after(20), pytest.raises((StreamReset, StreamEOF)):
            await stream.read(1)


async def test_an_overlong_message_is_refused(open_hosts):
    async with open_hosts(2) as hosts:
        victim, hostile = await met(hosts)
        fits = Message(type=Message.MessageType.PING, key=bytes(MAX_MESSAGE_BYTES - 100))
        longer = Message(type=Message.MessageType.PING, key=bytes(MAX_MESSAGE_BYTES))
        assert await is_answered(hostile, victim, fits)
        assert not await is_answered(hostile, victim, longer)


async def test_entry_points_are_stored_within_bounds(open_hosts, monkeypatch):
    monkeypatch.setattr(answering_module, "MAX_PROVIDED_KEYS", 2)
    async with open_hosts(1) as (host,):
        store = host.dht._kad.provider_store
        addresses = [Multiaddr(f"/ip4/192.0.2.1/tcp/{port}") for port in range(1, 100)]
        for key in (b"1", b"2", b"3"):
            store.add_provider(key, PeerInfo(ID(b"\x12\x20" + bytes(32)), addresses))
        assert list(store.providers) == [b"2", b"3"]
        (held,) = store.get_providers(b"3")
        assert held.addrs == addresses[:MAX_ADDRESSES]


async def test_a_peer_that_is_slow_to_answer_pings_gives_up_its_place(open_hosts, monkeypatch):
    monkeypatch.setattr(answering_module, "PING_SECONDS", 0.2)

    async def slow(stream):
        await trio.sleep_forever()

    async with open_hosts(2) as hosts:
        victim, oldest = await met(hosts)
        oldest._host.set_stream_handler(PING_PROTOCOL, slow)
        (bucket,) = victim.dht._kad.routing_table.buckets
        monkeypatch.setattr(bucket, "bucket_size", 1)
        assert bucket.peer_ids() == [ID.from_string(oldest.peer_id)]
        with trio.fail_after(8):
            assert await bucket.add_peer(PeerInfo(newcomer := ID(b"\x12\x20" + bytes(32)), []))
        assert bucket.peer_ids() == [newcomer]
