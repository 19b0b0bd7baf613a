"""Addresses as texts: what is dialled, and that no text of a stranger breaks anything."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from llmesh.errors import ValidationFailed
from llmesh.net.libp2p.addresses import Endpoint, endpoint, expand, peer_address, well_formed
from llmesh.net.libp2p.ports import port_is_free

PEER = "12D3KooW9sepinziiZfvbkMyzxfik8FSEkNXgGKvqnNz5Snsf2Jo"
PORTS = st.integers(0, 65535)
ADDRESSES = st.one_of(
    st.builds(Endpoint, st.just("ip4"), st.ip_addresses(v=4).map(str), PORTS),
    st.builds(Endpoint, st.just("ip6"), st.ip_addresses(v=6).map(str), PORTS),
    st.builds(
        Endpoint,
        st.sampled_from(["dns", "dns4", "dns6"]),
        st.from_regex(r"[a-z]{1,9}\.[a-z]{2}", fullmatch=True),
        PORTS,
    ),
)


@given(ADDRESSES)
def test_an_address_survives_its_text_and_libp2p_takes_it(address):
    assert endpoint(str(address)) == address
    assert str(Multiaddr(str(address)))


@given(st.one_of(st.text(), st.from_regex(r"/(ip4|ip6|dns4)/.{0,20}/tcp/.{0,6}")))
def test_any_other_text_is_refused_with_our_error(text):
    try:
        found = endpoint(text)
    except ValidationFailed:
        return
    assert str(Multiaddr(str(found)))


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/ip4/1.2.3.4", "/ip4/1.2.3.4/tcp/x", "/ip4/1.2.3/tcp/1", "/ip4/::1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1", "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/1/ws", "/dns4/-a/tcp/1",
        "/ip6/1.2.3.4/tcp/1", "/dns4/a..b/tcp/1", "/ip4/1.2.3.4/tcp/1\n", "/ip4/1.2.3.4/udp/1",
    ],
)  # fmt: skip
def test_refused(text):
    with pytest.raises(ValidationFailed):
        endpoint(text)


def test_foreign_addresses_are_bounded_and_deduplicated():
    good = [f"/ip4/192.0.2.{n}/tcp/1" for n in range(1, 20)]
    assert well_formed([good[0], "x", good[0], "/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/tcp/0"]) == (good[0],)
    assert well_formed(good) == tuple(good[:8])


def test_a_peer_address_needs_its_peer():
    found = peer_address(f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}")
    assert (found.peer_id, found.addresses) == (PEER, ("/ip4/192.0.2.1/tcp/4001",))
    for text in ("/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001/p2p/Qm", f"/p2p/{PEER}"):
        with pytest.raises(ValidationFailed):
            peer_address(text)


def test_a_bound_wildcard_stands_for_this_machines_addresses(monkeypatch):
    monkeypatch.setattr("llmesh.net.libp2p.addresses.get_network_addrs", lambda version: ["192.0.2.7"])
    assert expand(Endpoint("ip4", "0.0.0.0", 4001)) == ("/ip4/192.0.2.7/tcp/4001",)
    assert expand(Endpoint("ip4", "127.0.0.1", 4001)) == ("/ip4/127.0.0.1/tcp/4001",)
    monkeypatch.setattr("llmesh.net.libp2p.addresses.get_network_addrs", lambda version: [])
    assert expand(Endpoint("ip6", "::", 4001)) == ("/ip6/::1/tcp/4001",)


def test_a_port_shared_by_libp2p_does_not_count_as_free():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        assert not port_is_free(address)
    assert port_is_free(address)
    with pytest.raises(ValidationFailed):
        port_is_free("4001")
