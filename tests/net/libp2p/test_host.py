"""The host against dead, silent, hostile and crashing peers."""

from __future__ import annotations

import gc
import logging
import random
import socket

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.security.tls.transport import TLSTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.utils import encode_delim
from multiaddr import Multiaddr

from llmesh.errors import NetworkError, NodeUnreachable, ValidationFailed
from llmesh.net.libp2p import dialer as dialer_module
from llmesh.net.libp2p.host import LINK_PROTOCOL, open_libp2p_host
from llmesh.net.libp2p.link import WINDOW_BYTES
from llmesh.net.libp2p.stack import MAX_CONNECTIONS_PER_PEER

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def echo(link):
    while True:
        await link.write(await link.read())


async def works(link):
    await link.write(b"ping")
    with trio.fail_after(20):
        return await link.read() == b"ping"


def port_of(host):
    return int(host.addresses[0].rpartition("/")[2])


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- listening ------------------------------------------------------------------------------------


async def refused(listen, error, match):
    with pytest.raises(error, match=match):
        async with open_libp2p_host(bytes(32), listen=[listen], judge=lambda _: None):
            pytest.fail("it opened")


async def test_bad_addresses_are_refused_with_a_reason():
    await refused("127.0.0.1:4001", ValidationFailed, "is not an address")
    await refused("/ip4/127.0.0.1/udp/4001/quic-v1", ValidationFailed, "is not an address")
    await refused("/ip4/127.0.0.1/tcp/70000", ValidationFailed, "65535")
    await refused("/ip4/203.0.113.9/tcp/4001", NetworkError, "Cannot listen")
    await refused("/ip4/203.0.113.9/tcp/0", NetworkError, "Cannot listen")


async def test_a_taken_port_is_refused_though_libp2p_would_share_it(open_hosts):
    async with open_hosts(1) as (host,):
        await refused(host.addresses[0], NetworkError, "taken")


async def test_a_wildcard_is_announced_as_real_addresses():
    async with open_libp2p_host(bytes(32), listen=["/ip4/0.0.0.0/tcp/0"], judge=lambda _: None) as host:
        assert host.addresses
        assert not any("0.0.0.0" in address or address.endswith("/0") for address in host.addresses)


async def test_announce_replaces_what_was_bound():
    announce = ["/dns4/node.example/tcp/4001"]
    async with open_libp2p_host(
        bytes(32), listen=[LOOPBACK], announce=announce, judge=lambda _: None
    ) as host:
        assert host.addresses == tuple(announce)


# --- who may connect ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plaintext", "tls", "mplex"])
async def test_nothing_but_noise_and_yamux_is_accepted(open_hosts, kind):
    pair = create_new_key_pair()
    ciphers = {
        "plaintext": {PLAINTEXT_PROTOCOL_ID: InsecureTransport(pair)},
        "tls": {TLS: TLSTransport(pair)},
    }
    muxers = {"mplex": {MPLEX_PROTOCOL_ID: Mplex}}
    stranger = new_host(key_pair=pair, sec_opt=ciphers.get(kind), muxer_opt=muxers.get(kind))
    async with open_hosts(1) as (host,), stranger.run([Multiaddr(LOOPBACK)]):
        stranger.get_network().retry_config.max_retries = 0
        with pytest.raises(SwarmException):
            await stranger.get_network().dial_addr(Multiaddr(host.addresses[0]), ID.from_string(host.peer_id))
        assert host.connection_count == 0
        await stranger.close()


async def test_one_peer_holds_only_a_few_connections(open_hosts):
    async with open_hosts(2) as (here, there):
        for _ in range(MAX_CONNECTIONS_PER_PEER):
            await here._swarm.dial_addr(Multiaddr(there.addresses[0]), ID.from_string(there.peer_id))
        with pytest.raises(SwarmException):
            await here._swarm.dial_addr(Multiaddr(there.addresses[0]), ID.from_string(there.peer_id))
        assert there.connection_count <= MAX_CONNECTIONS_PER_PEER


async def test_a_wrong_identity_is_noticed(open_hosts):
    async with open_hosts(3) as (here, there, other):
        with pytest.raises(NodeUnreachable):
            await here.dial(other.peer_id, there.addresses)


async def test_garbage_and_noise_in_the_log_stay_away(open_hosts, caplog):
    caplog.set_level(logging.WARNING)
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x13/multistream/1.0.0\n\x07/noise\nxx"):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(there))
            await stream.send_all(junk)
            await stream.aclose()
        assert await works(await here.dial(there.peer_id, there.addresses))
    assert not caplog.records
    assert not logging.getLogger("libp2p.kad_dht.kad_dht").isEnabledFor(logging.ERROR)


# --- what a peer may do to us ---------------------------------------------------------------------


async def test_a_raising_handler_costs_its_link_only(open_hosts):
    async def accept(link):
        data = await link.read()
        if data == b"crash":
            raise RuntimeError("a bug that a peer can reach")
        await link.write(data)
        await echo(link)

    async with open_hosts(2) as (here, there):
        there.serve(accept)
        doomed = await here.dial(there.peer_id, there.addresses)
        fine = await here.dial(there.peer_id, there.addresses)
        assert await works(fine)
        await doomed.write(b"crash")
        with trio.fail_after(20), pytest.raises(NetworkError):
            await doomed.read()
        assert await works(fine)
        assert await works(await here.dial(there.peer_id, there.addresses)), "new links still open"


@pytest.mark.slow
async def test_no_connection_keeps_a_slot_or_a_task(open_hosts, eventually):
    """libp2p keeps both for each connection it ever accepted: after 250 it refuses everyone."""
    async with open_hosts(2) as (here, there):
        slots = there._swarm._inbound_limiter

        def settled():
            return not slots.borrowed_tokens and not there.connection_count

        there.serve(echo)
        assert await works(await here.dial(there.peer_id, there.addresses))
        await here.hang_up(there.peer_id)
        await eventually(settled)
        await trio.sleep(0.2)
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(10):
            await here.dial(there.peer_id, there.addresses)
            await here.hang_up(there.peer_id)
        await connect_and_leave(port_of(there), times=1990)
        await eventually(settled)
        await trio.sleep(0.2)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 3
        assert there._swarm._resource_manager.get_stats()["connections"] == 0
        assert await works(await here.dial(there.peer_id, there.addresses))


async def connect_and_leave(port, times):
    async def leave(count):
        for _ in range(count):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(leave, times // 10)


async def test_cancels_at_any_point_leave_other_links_unharmed(open_hosts):
    """Without shielded raw writes, one to seventy such cancels kill the connection."""
    rng = random.Random(11)
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        steady = await here.dial(there.peer_id, there.addresses)
        for _ in range(150):
            with trio.move_on_after(rng.uniform(0, 0.006)):
                link = await here.dial(there.peer_id, there.addresses)
                await works(link)
                await link.aclose()
            assert await works(steady)
        assert here.connection_count == 1


async def test_peers_notice_at_once_when_a_host_closes(open_hosts, eventually):
    async with open_hosts(1) as (here,):
        async with open_libp2p_host(b"z" * 32, listen=[LOOPBACK], judge=lambda _: None) as there:
            there.serve(echo)
            link = await here.dial(there.peer_id, there.addresses)
        with trio.fail_after(20), pytest.raises(NetworkError):
            await link.read()
        await eventually(lambda: not here.connection_count)


# --- dialling -------------------------------------------------------------------------------------


async def test_a_dead_and_a_silent_address_cost_a_head_start_only(open_hosts):
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        mute = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        dead = f"/ip4/127.0.0.1/tcp/{unused_port()}"
        async with open_hosts(2) as (here, there):
            there.serve(echo)
            with trio.fail_after(dialer_module.DIAL_SECONDS):
                link = await here.dial(there.peer_id, [dead, mute, "not an address", *there.addresses])
            assert await works(link)
            assert here.connection_count == 1


async def test_unreachable_says_why_and_is_not_remembered(open_hosts):
    dead = f"/ip4/127.0.0.1/tcp/{unused_port()}"
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        with pytest.raises(NodeUnreachable, match=r"refused|connect") as failed:
            await here.dial(there.peer_id, [dead])
        assert failed.value.peer_id == there.peer_id
        with pytest.raises(NodeUnreachable, match="no usable address"):
            await here.dial(there.peer_id, [])
        assert await works(await here.dial(there.peer_id, there.addresses))


async def test_a_silent_address_is_given_up(open_hosts, monkeypatch):
    monkeypatch.setattr(dialer_module, "DIAL_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_hosts(2) as (here, there):
            with pytest.raises(NodeUnreachable, match="no answer"):
                await here.dial(there.peer_id, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])


async def test_a_cancelled_dial_leaves_nothing_open(open_hosts):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
    async with open_hosts(2) as (here, there):
        before = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.dial, there.peer_id, [address])
            accepted = await listeners[0].accept()
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            while await accepted.receive_some():
                pass  # its half of the handshake, then the end
        await accepted.aclose()
        assert trio.lowlevel.current_statistics().tasks_living <= before
        assert here.connection_count == 0
        assert not here._dialer.busy_with(there.peer_id)
    await listeners[0].aclose()


async def test_dials_at_once_share_one_connection(open_hosts):
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        links = []

        async def dial():
            links.append(await here.dial(there.peer_id, there.addresses))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(dial)
        assert [await works(link) for link in links] == [True] * 5
        assert here.connection_count == 1


async def test_a_peer_without_our_protocol_is_unreachable(open_hosts):
    async with open_hosts(2) as (here, there):
        with pytest.raises(NodeUnreachable, match="no session"):
            await here.dial(there.peer_id, there.addresses)


def in_nine_bytes(line):
    """A line of a negotiation whose length takes more bytes than it needs, each of them a read."""
    return bytes([len(line) + 1 | 0x80, *[0x80] * 7, 0]) + line + b"\n"


@pytest.mark.parametrize("said", [encode_delim(b"\xff"), encode_delim(b"/multistream/1.0.0") + b"\x02\xff\n"])
async def test_a_peer_that_negotiates_in_no_language_is_unreachable(open_hosts, said):
    async def hostile(stream):
        await stream.write(said)

    async with open_hosts(2) as (here, there):
        there._swarm.set_stream_handler(hostile)
        with pytest.raises(NodeUnreachable, match="no session"):
            await here.dial(there.peer_id, there.addresses)


async def test_whoever_negotiates_in_no_language_loses_the_stream_only(open_hosts):
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        link = await here.dial(there.peer_id, there.addresses)
        stream = await here._swarm.new_stream(ID.from_string(there.peer_id))
        await stream.write(encode_delim(b"\xff"))
        with trio.fail_after(10):
            assert await stream.read(20) == encode_delim(b"/multistream/1.0.0")
            with pytest.raises((StreamReset, StreamEOF)):
                await stream.read(1)
        assert await works(link)


async def test_a_peer_that_negotiates_at_length_gets_no_more_credit(open_hosts):
    async def longwinded(stream):
        for line in (b"/multistream/1.0.0", LINK_PROTOCOL.encode()):
            await stream.write(in_nine_bytes(line))
        await stream.write(b"pong")
        await trio.sleep_forever()

    async with open_hosts(2) as (here, there):
        there._swarm.set_stream_handler(longwinded)
        link = await here.dial(there.peer_id, there.addresses)
        assert link._mux.recv_window > WINDOW_BYTES
        assert await link.read() == b"pong"


async def test_pings_are_answered_and_nobody_is_noted_down(open_hosts):
    async with open_hosts(2) as (here, there):
        there.serve(echo)
        await here.dial(there.peer_id, there.addresses)
        services = [each for each in gc.get_objects() if isinstance(each, PingService)]
        assert await PingService(here._host).ping(ID.from_string(there.peer_id))
        assert not any(service._inbound_streams for service in services)


async def test_a_restarted_peer_is_found_at_its_new_address(open_hosts):
    async with open_hosts(1) as (here,):
        for _ in range(2):
            async with open_libp2p_host(b"r" * 32, listen=[LOOPBACK], judge=lambda _: None) as there:
                there.serve(echo)
                assert await works(await here.dial(there.peer_id, there.addresses))
