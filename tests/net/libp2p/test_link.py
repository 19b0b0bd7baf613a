"""Links between two real hosts on loopback."""

from __future__ import annotations

import hashlib
import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from llmesh.crypto import peer_id_of, public_key_of
from llmesh.errors import NetworkError
from llmesh.net.libp2p import link as link_module


async def echo(link):
    while True:
        await link.write(await link.read())


async def ignore(link):
    await trio.sleep_forever()


async def drain(link):
    while True:
        await link.read()


async def flood(link, size):
    for _ in range(size // link_module.WRITE_BYTES):
        await link.write(bytes(link_module.WRITE_BYTES))


@asynccontextmanager
async def two(open_hosts, accept):
    async with open_hosts(2) as (here, there):
        there.serve(accept)
        yield here, there


async def test_a_link_carries_bytes_both_ways(open_hosts):
    async with two(open_hosts, echo) as (here, there):
        assert peer_id_of(public_key_of(here.peer_id)) == here.peer_id
        link = await here.dial(there.peer_id, there.addresses)
        await link.write(b"hello")
        assert await link.read() == b"hello"
        assert link.initiator
        assert link.peer_id == there.peer_id
        assert link.remote_address == there.addresses[0]
        assert (here.connection_count, there.connection_count) == (1, 1)


async def test_a_closed_link_wakes_both_readers(open_hosts):
    ended = trio.Event()

    async def accept(link):
        assert not link.initiator
        with pytest.raises(NetworkError):
            await link.read()
        ended.set()

    async with two(open_hosts, accept) as (here, there), trio.open_nursery() as nursery:
        link = await here.dial(there.peer_id, there.addresses)

        async def reader():
            with pytest.raises(NetworkError, match="closed"):
                await link.read()

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        await link.aclose()
        with trio.fail_after(20):
            await ended.wait()
        with pytest.raises(NetworkError, match="closed"):
            await link.write(b"late")


async def test_a_killed_connection_ends_the_link(open_hosts):
    async with two(open_hosts, ignore) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        await there.hang_up(here.peer_id)
        with trio.fail_after(20), pytest.raises(NetworkError):
            await link.read()


async def test_the_window_never_runs_dry_while_the_peer_reads(open_hosts):
    """12 MiB one way is three times what the peer granted at first; it arrives whole."""
    piece, count = random.Random(7).randbytes(link_module.WRITE_BYTES), 200
    digest, done = hashlib.sha256(), trio.Event()

    async def accept(link):
        got = 0
        while got < count * len(piece):
            data = await link.read()
            assert len(data) <= 256 << 10
            digest.update(data)
            got += len(data)
        done.set()

    async with two(open_hosts, accept) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        for _ in range(count):
            await link.write(piece)
        with trio.fail_after(20):
            await done.wait()
        assert digest.digest() == hashlib.sha256(piece * count).digest()


async def test_a_read_loses_nothing_to_cancels(open_hosts):
    sent = random.Random(3).randbytes(3_000_000)

    async def accept(link):
        for start in range(0, len(sent), 9_973):
            await link.write(sent[start : start + 9_973])
        await trio.sleep_forever()

    rng, got = random.Random(5), b""
    async with two(open_hosts, accept) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        with trio.fail_after(20):
            while len(got) < len(sent):
                with trio.move_on_after(rng.uniform(0, 0.002)):
                    while len(got) < len(sent):
                        got += await link.read()
    assert got == sent


async def test_a_reader_that_stalls_fails_the_writer_and_nobody_else(open_hosts, monkeypatch):
    monkeypatch.setattr(link_module, "WRITE_SECONDS", 0.3)
    stalled = []

    async def accept(link):
        if not stalled:
            stalled.append(link)
            await trio.sleep_forever()
        await echo(link)

    async with two(open_hosts, accept) as (here, there):
        slow = await here.dial(there.peer_id, there.addresses)
        other = await here.dial(there.peer_id, there.addresses)
        with pytest.raises(NetworkError, match="took no data"):
            await flood(slow, link_module.WINDOW_BYTES + 2 * link_module.WRITE_BYTES)
        await other.write(b"still here")
        assert await other.read() == b"still here"
        assert here.connection_count == 1


async def test_a_write_is_not_torn_by_a_cancel(open_hosts):
    async with two(open_hosts, echo) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.write(b"whole")
        assert await link.read() == b"whole"


async def test_a_peer_that_overruns_its_window_loses_the_link(open_hosts, eventually):
    caught = trio.Event()

    async def accept(link):
        await eventually(lambda: link._inlet.room < 0)  # nobody reads meanwhile, so all credit is used up
        with pytest.raises(NetworkError, match="window"):
            await drain(link)
        caught.set()

    async with two(open_hosts, accept) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        link._mux.send_window = 1 << 30
        await flood(link, link_module.WINDOW_BYTES + 20 * link_module.WRITE_BYTES)
        with trio.fail_after(20):
            await caught.wait()


async def test_the_names_that_links_read_past_the_stream_class_exist(open_hosts):
    """They are public but in no interface: a new libp2p may move them."""
    async with two(open_hosts, ignore) as (here, there):
        mux = (await here.dial(there.peer_id, there.addresses))._mux
        assert isinstance(mux.recv_window, int)
        assert isinstance(mux.stream_id, int)
        assert mux.stream_id in mux.conn.stream_buffers
        assert mux.stream_id in mux.conn.stream_events
        assert isinstance(mux.send_window, int)
        assert [mux.closed, mux.send_closed, mux.recv_closed] == [False] * 3


async def test_a_closed_link_leaves_no_inlet_behind(open_hosts, monkeypatch):
    async def fail(stream):
        raise OSError("the reset did not go out")

    async with two(open_hosts, ignore) as (here, there):
        link = await here.dial(there.peer_id, there.addresses)
        await link.aclose()
        assert not link._inlets._inlets
        other = await here.dial(there.peer_id, there.addresses)
        monkeypatch.setattr(link_module, "end_stream", fail)
        with pytest.raises(OSError, match="did not go out"):
            await other.aclose()
        assert not other._inlets._inlets
