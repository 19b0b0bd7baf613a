"""Peers on the local network, here on the loopback interface."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack

import trio
import trio.testing

from llmesh.net.host import PeerAddress
from llmesh.net.libp2p import mdns as mdns_module
from llmesh.net.libp2p.mdns import _Listener, _peer, open_mdns

PEER = "12D3KooW9sepinziiZfvbkMyzxfik8FSEkNXgGKvqnNz5Snsf2Jo"
ADDRESS = b"/ip4/192.0.2.1/tcp/4001"


async def hears(channel, host):
    """Others may be about on this machine."""
    while await channel.receive() != PeerAddress(host.peer_id, host.addresses):
        pass


async def test_two_nodes_hear_of_each_other_and_leave_no_thread(open_hosts, eventually):
    async with open_hosts(2) as (here, there):
        async with AsyncExitStack() as stack:
            with trio.testing.assert_no_checkpoints():
                heard_here = await stack.enter_async_context(open_mdns(here))
            heard_there = await stack.enter_async_context(open_mdns(there))
            with trio.fail_after(30):
                await hears(heard_here, there)
                await hears(heard_there, here)
        await eventually(lambda: not any("zeroconf" in each.name.lower() for each in threading.enumerate()))


async def test_stopping_at_once_is_clean(open_hosts):
    async with open_hosts(1) as (host,), open_mdns(host):
        pass


async def test_without_multicast_nothing_is_heard_and_nothing_fails(open_hosts, monkeypatch):
    def no_network(addresses):
        raise OSError("no interface")

    monkeypatch.setattr(mdns_module, "_start", no_network)
    async with open_hosts(1) as (host,), open_mdns(host) as heard:
        with trio.move_on_after(0.1) as scope:
            await heard.receive()
        assert scope.cancelled_caught


def test_what_a_stranger_announces_is_checked():
    assert _peer({b"id": PEER.encode(), b"a0": ADDRESS}) == PeerAddress(PEER, (ADDRESS.decode(),))
    for bad in (
        {},
        {b"id": PEER.encode()},
        {b"a0": ADDRESS},
        {b"id": b"\xff\xfe", b"a0": ADDRESS},
        {b"id": PEER.encode() + b"\n", b"a0": ADDRESS},
        {b"id": PEER.encode(), b"a0": b"\xff", b"a1": None},
        {b"id": PEER.encode(), b"a0": b"/ip4/0.0.0.0/tcp/1"},
    ):
        assert _peer(bad) is None


async def test_a_full_channel_drops_and_a_crash_stays_in_the_listener():
    send, receive = trio.open_memory_channel(1)
    listener = _Listener(PEER, trio.lowlevel.current_trio_token(), send)
    for number in range(3):
        listener._deliver(PeerAddress(PEER, (str(number),)))
    assert receive.receive_nowait().addresses == ("0",)
    assert receive.statistics().current_buffer_used == 0

    class Broken:
        def get_service_info(self, *_, **__):
            raise RuntimeError("a malformed packet")

    listener.add_service(Broken(), "", "")
    await receive.aclose()
    listener._deliver(PeerAddress(PEER, ()))
