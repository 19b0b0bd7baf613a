"""What strangers may make the host remember, and what it must never forget."""

from __future__ import annotations

import time

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from multiaddr import Multiaddr

from llmesh.net.libp2p.peerstore import MAX_ADDRESSES, MAX_PEERS, BoundedPeerStore

PAIR, OTHER = create_new_key_pair(bytes(32)), create_new_key_pair(bytes([1] * 32))
ME, STRANGER = ID.from_pubkey(PAIR.public_key), ID.from_pubkey(OTHER.public_key)


def peer(number):
    return ID(b"\x12\x20" + number.to_bytes(32, "big"))


def address(number):
    return Multiaddr(f"/ip4/192.0.2.1/tcp/{number + 1}")


def record(addresses):
    return create_signed_peer_record(STRANGER, addresses, OTHER.private_key)


@pytest.fixture
def store():
    store = BoundedPeerStore(ME)
    store.add_key_pair(ME, PAIR)
    return store


def test_the_own_key_outlives_any_number_of_strangers(store):
    for number in range(MAX_PEERS + 9):
        store.add_addrs(peer(number), [address(0)], 60)
    assert len(store.peer_ids()) == MAX_PEERS
    assert store.privkey(ME) == PAIR.private_key


async def test_strangers_without_an_address_are_forgotten_too(store):
    for number in range(MAX_PEERS + 9):
        await update_peerstore_from_identify(store, peer(number), Identify(protocols=["/x"]))
    store.add_pubkey(STRANGER, OTHER.public_key)
    assert len(store.peer_ids()) == MAX_PEERS


def test_whoever_is_heard_of_again_is_remembered_longer(store):
    for number in range(MAX_PEERS - 1):
        store.add_addrs(peer(number), [address(0)], 60)
    store.add_addrs(peer(0), [address(0)], 60)
    store.add_addrs(STRANGER, [address(0)], 60)
    assert store.has_peer(peer(0))
    assert not store.has_peer(peer(1))


def test_few_addresses_of_a_peer_are_kept_the_newest(store):
    store.add_addrs(STRANGER, list(map(address, range(60_000))), 60)
    assert store.addrs(STRANGER) == list(map(address, range(MAX_ADDRESSES)))
    store.add_addrs(STRANGER, [address(99)], 60)
    assert store.addrs(STRANGER) == list(map(address, [99, *range(MAX_ADDRESSES - 1)]))


async def test_few_protocols_of_a_peer_are_kept(store):
    for _ in range(2):
        said = Identify(protocols=["x" * 129, *map(str, range(10_000))])
        await update_peerstore_from_identify(store, STRANGER, said)
    assert store.get_protocols(STRANGER) == list(map(str, range(63)))


def test_an_overlong_record_is_passed_over(store):
    assert store.consume_peer_record(record(list(map(address, range(200)))), 60)
    assert store.get_peer_record(STRANGER) is None
    assert store.consume_peer_record(record([address(0)]), 60)
    assert store.get_peer_record(STRANGER) is not None


def test_a_record_that_has_run_out_is_none(store, monkeypatch):
    store.consume_peer_record(record([address(0)]), 60)
    later = time.time() + 62
    monkeypatch.setattr("time.time", lambda: later)
    assert store.get_peer_record(STRANGER) is None


async def test_a_host_has_such_a_store_and_tells_who_it_is(open_hosts):
    async with open_hosts(1) as (host,):
        store = host._host.get_peerstore()
        for number in range(MAX_PEERS + 9):
            store.add_addrs(peer(number), [address(0)], 60)
        assert str(ID.from_pubkey(host._host.get_public_key())) == host.peer_id
