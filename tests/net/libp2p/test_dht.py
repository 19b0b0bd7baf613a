"""The hash table over real hosts: fresh, true, bounded, and closed to what is not an announcement."""

from __future__ import annotations

import hashlib
import json

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from llmesh.core.ids import PeerId
from llmesh.errors import ValidationFailed
from llmesh.net.host import PeerAddress
from llmesh.net.libp2p import dht as dht_module
from llmesh.net.libp2p.dht import MAX_RECORD_BYTES, value_key

KEY = hashlib.sha256(b"sentiment-analyzer").digest()


def announcement(peer, sequence, **extra):
    return json.dumps({"peer": peer, "sequence": sequence, **extra}).encode()


def at(host):
    return PeerAddress(host.peer_id, host.addresses)


async def joined(hosts):
    """All but the first enter through the first, one after the other."""
    for host in hosts[1:]:
        assert await host.dht.join([at(hosts[0])]) > 0
    return hosts


async def test_an_announcement_is_found_by_all(open_hosts):
    async with open_hosts(4) as hosts:
        *_, provider = await joined(hosts)
        assert await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 1))
        for reader in hosts:
            assert await reader.dht.get(provider.peer_id) == announcement(provider.peer_id, 1)
        assert await hosts[0].dht.get(hosts[1].peer_id) is None


async def test_a_read_goes_past_what_was_read_before(open_hosts):
    """libp2p would give back its own copy for a day."""
    async with open_hosts(3) as hosts:
        reader, holder, provider = await joined(hosts)
        key = value_key(provider.peer_id).encode()
        assert await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 1))
        assert reader.dht._kad.value_store.get(key).value == announcement(provider.peer_id, 1)
        await provider.dht._kad.value_store._store_at_peer(
            ID.from_string(holder.peer_id), key, b"", record=dht_record(provider, 2)
        )
        assert await reader.dht.get(provider.peer_id) == announcement(provider.peer_id, 2)
        assert reader.dht._kad.value_store.get(key).value == announcement(provider.peer_id, 2)


async def test_a_holder_keeps_its_copy_when_the_network_has_none(open_hosts):
    """A read sets the local copy aside: it must be back, or readers destroy what they hold for others."""
    async with open_hosts(2) as hosts:
        holder, provider = await joined(hosts)
        record = announcement(provider.peer_id, 1)
        assert await provider.dht.put(provider.peer_id, record)
        await holder.hang_up(provider.peer_id)
        provider.dht._kad.value_store.remove(value_key(provider.peer_id).encode())
        assert await holder.dht.get(provider.peer_id) == record
        with trio.move_on_after(0.01):
            await holder.dht.get(provider.peer_id)
        assert holder.dht._kad.value_store.get(value_key(provider.peer_id).encode()).value == record


async def test_put_alone_or_of_an_old_record_says_no(open_hosts, monkeypatch):
    async with open_hosts(3) as hosts:
        alone = hosts[0]
        with monkeypatch.context() as impatient:
            impatient.setattr(dht_module, "CALL_SECONDS", 0.5)
            assert not await alone.dht.put(alone.peer_id, announcement(alone.peer_id, 1))
        *_, provider = await joined(hosts)
        assert await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 5))
        assert not await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 4))
        assert await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 5)), "a renewal"
        assert await alone.dht.get(provider.peer_id) == announcement(provider.peer_id, 5)


async def test_no_node_stores_what_is_not_an_announcement(open_hosts):
    """Sent past our own checks, as a hostile node would."""
    async with open_hosts(2) as hosts:
        victim, hostile = await joined(hosts)
        key = value_key(hostile.peer_id).encode()
        bad = {
            "another peer's key": (value_key(victim.peer_id).encode(), announcement(hostile.peer_id, 1)),
            "forged": (key, announcement(hostile.peer_id, 1, forged=True)),
            "oversized": (key, announcement(hostile.peer_id, 1, padding="x" * MAX_RECORD_BYTES)),
            "not even JSON": (key, b"\xff\xfe"),
            "deeply nested": (key, b"[" * 10_000),
            "foreign namespace": (b"/pk/" + key[5:], announcement(hostile.peer_id, 1)),
            "no namespace": (b"plain", announcement(hostile.peer_id, 1)),
        }
        for why, (where, value) in bad.items():
            await hostile.dht._kad.value_store._store_at_peer(ID.from_string(victim.peer_id), where, value)
            assert victim.dht._kad.value_store.get(where) is None, why
        assert await hostile.dht.put(hostile.peer_id, announcement(hostile.peer_id, 1)), "the victim lives"


async def test_a_replayed_record_does_not_replace_a_newer_one(open_hosts):
    async with open_hosts(2) as hosts:
        victim, provider = await joined(hosts)
        key = value_key(provider.peer_id).encode()
        assert await provider.dht.put(provider.peer_id, announcement(provider.peer_id, 2))
        await provider.dht._kad.value_store._store_at_peer(
            ID.from_string(victim.peer_id), key, announcement(provider.peer_id, 1)
        )
        assert await victim.dht.get(provider.peer_id) == announcement(provider.peer_id, 2)


async def test_a_full_store_takes_renewals_only(open_hosts, monkeypatch):
    monkeypatch.setattr(dht_module, "MAX_VALUES", 1)
    async with open_hosts(3) as hosts:
        victim, first, second = await joined(hosts)
        for peer in (first, second):
            peer.dht._kad.value_store.put(value_key(peer.peer_id).encode(), announcement(peer.peer_id, 1))
        for sender, sequence in ((first, 1), (second, 1), (first, 2)):
            await sender.dht._kad.value_store._store_at_peer(
                ID.from_string(victim.peer_id),
                value_key(sender.peer_id).encode(),
                announcement(sender.peer_id, sequence),
                record=dht_record(sender, sequence),
            )
        held = victim.dht._kad.value_store.store
        assert list(held) == [value_key(first.peer_id).encode()]
        assert held[value_key(first.peer_id).encode()][0].value == announcement(first.peer_id, 2)


def dht_record(host, sequence):
    store = host.dht._kad.value_store
    key = value_key(host.peer_id).encode()
    store.put(key, announcement(host.peer_id, sequence))
    return store.get(key)


async def test_own_bad_records_never_leave(open_hosts):
    async with open_hosts(1) as (host,):
        for record in (b"junk", announcement("another", 1), bytes(MAX_RECORD_BYTES + 1)):
            with pytest.raises(ValidationFailed):
                await host.dht.put(host.peer_id, record)


async def test_entry_points_are_found_once_each_and_the_holder_keeps_them(open_hosts):
    async with open_hosts(5) as hosts:
        await joined(hosts)
        for host in hosts[1:]:
            assert await host.dht.provide(KEY)
        await trio.sleep(0.2)  # ADD_PROVIDER is not acknowledged
        for _ in range(2):
            found = await hosts[0].dht.find(KEY)
            assert sorted(each.peer_id for each in found) == sorted(host.peer_id for host in hosts[1:])
            assert {each.addresses for each in found} == {host.addresses for host in hosts[1:]}
        assert hosts[1].peer_id not in {each.peer_id for each in await hosts[1].dht.find(KEY)}
        assert await hosts[0].dht.find(bytes(32)) == ()


async def test_a_search_keeps_the_entry_points_held_for_others(open_hosts):
    async with open_hosts(2) as hosts:
        holder, _ = await joined(hosts)
        store, only_here = holder.dht._kad.provider_store, "12D3KooW" + "Q" * 44
        store.add_provider(KEY, PeerInfo(ID.from_string(only_here), [Multiaddr("/ip4/192.0.2.9/tcp/1")]))
        for _ in range(2):
            assert [each.peer_id for each in await holder.dht.find(KEY)] == [only_here]
        assert [str(each.peer_id) for each in store.get_providers(KEY)] == [only_here]


async def test_squatters_with_crooked_names_or_addresses_are_left_out(open_hosts):
    async with open_hosts(2) as hosts:
        reader, holder = await joined(hosts)
        store = holder.dht._kad.provider_store
        good = ID.from_string(reader.peer_id.replace(reader.peer_id[-4:], "QmQm"))
        tcp, quic = Multiaddr("/ip4/192.0.2.9/tcp/1"), Multiaddr("/ip4/192.0.2.9/udp/1/quic-v1")
        store.add_provider(KEY, PeerInfo(good, [quic, tcp]))
        store.add_provider(KEY, PeerInfo(ID(b"\x00\x01x"), [tcp]))
        store.add_provider(KEY, PeerInfo(ID.from_string(holder.peer_id), [quic]))
        assert await reader.dht.find(KEY) == (PeerAddress(PeerId(str(good)), (str(tcp),)),)


async def test_provides_are_a_second_apart(open_hosts, monkeypatch):
    monkeypatch.setattr(dht_module, "PROVIDE_SECONDS", 0.3)
    async with open_hosts(2) as hosts:
        _, provider = await joined(hosts)
        started = trio.current_time()
        for number in range(4):
            assert await provider.dht.provide(bytes([number]) * 32)
        assert trio.current_time() - started >= 3 * 0.3


async def test_each_call_ends_in_time_whatever_the_others_do(open_hosts, monkeypatch):
    monkeypatch.setattr(dht_module, "CALL_SECONDS", 0.4)
    async with open_hosts(2) as hosts:
        here, mute = await joined(hosts)

        async def never(stream):
            await trio.sleep_forever()

        mute._host.set_stream_handler("/ipfs/kad/1.0.0", never)
        with trio.fail_after(5):
            assert not await here.dht.put(here.peer_id, announcement(here.peer_id, 1))
            assert await here.dht.get(mute.peer_id) is None
            assert await here.dht.find(KEY) == ()


async def test_joining_nobody_finds_nobody(open_hosts):
    async with open_hosts(2) as (here, there):
        assert await here.dht.join() == 0
        assert await here.dht.join([PeerAddress(there.peer_id, ("/ip4/127.0.0.1/tcp/1",))]) == 0


async def test_the_table_of_a_young_network_fills_by_itself(open_hosts, eventually, monkeypatch):
    monkeypatch.setattr(dht_module, "REFRESH_SECONDS", (0.3,))
    async with open_hosts(4) as hosts:
        await joined(hosts)
        await eventually(lambda: all(host.dht._kad.routing_table.size() == 3 for host in hosts))


def test_keys_fit_and_differ():
    assert value_key(PeerId("a")) != value_key(PeerId("b"))
    assert len(value_key(PeerId("a")).encode()) == 37
