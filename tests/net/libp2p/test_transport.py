"""One socket under Noise: nothing tears a write, nothing holds on for ever."""

from __future__ import annotations

import random
import socket

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError

from llmesh.net.libp2p import transport as transport_module
from llmesh.net.libp2p.transport import SocketPipe


async def socket_pair():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
    far = await listeners[0].accept()
    await listeners[0].aclose()
    return SocketPipe(near), far


async def test_reads_cut_the_buffer_where_asked():
    pipe, far = await socket_pair()
    sent = random.Random(1).randbytes(300_000)
    got, rng = b"", random.Random(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send_all, sent)
        while len(got) < len(sent):
            n = rng.choice([1, 2, 100, 65536, None])
            piece = await pipe.read(n)
            assert n is None or len(piece) <= n
            got += piece
    assert got == sent
    assert await pipe.read(0) == b""
    await far.aclose()
    assert await pipe.read(10) == b""
    await pipe.close()


async def test_bytes_are_taken_whole_or_not_at_all():
    pipe, far = await socket_pair()
    assert pipe.take(1) is None
    await far.send_all(b"0123456789")
    assert await pipe.read(2) == b"01"
    assert pipe.take(3) == b"234"
    assert pipe.take(6) is None
    assert await pipe.read() == b"56789"
    await pipe.close()
    await far.aclose()


async def test_others_have_their_turn_between_large_writes():
    pipe, far = await socket_pair()
    turns = []

    async def other():
        while True:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    async def drain():
        while await far.receive_some():
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(drain)
        for number in range(10):
            await pipe.write(bytes(16 * 1024))
            assert len(turns) >= number
        nursery.cancel_scope.cancel()
    await pipe.close()
    await far.aclose()


async def test_a_write_ignores_cancels():
    pipe, far = await socket_pair()
    sent = bytes(8_000_000)  # more than the kernel buffers

    async def write():
        with trio.move_on_after(0.01):
            await pipe.write(sent)

    got = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(0.1)
        while got < len(sent):
            got += len(await far.receive_some())
    await pipe.close()
    await far.aclose()


async def test_a_frozen_peer_costs_the_socket_not_the_writer(monkeypatch):
    monkeypatch.setattr(transport_module, "WRITE_SECONDS", 0.2)
    pipe, far = await socket_pair()
    with trio.fail_after(20), pytest.raises(ConnectionClosedError, match="took too little"):
        await pipe.write(bytes(50_000_000))
    assert pipe.closed.is_set()
    with pytest.raises(ConnectionClosedError):
        await pipe.write(b"more")
    assert await pipe.read(1) == b""
    await far.aclose()


async def test_a_peer_that_takes_data_by_the_drop_cannot_stretch_a_write_for_ever(monkeypatch):
    monkeypatch.setattr(transport_module, "WRITE_SECONDS", 0.1)
    pipe, far = await socket_pair()

    async def sip():
        while True:
            await far.receive_some(20_000)
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sip)
        with trio.fail_after(20), pytest.raises(ConnectionClosedError, match="took too little"):
            await pipe.write(bytes(200_000_000))
        nursery.cancel_scope.cancel()
    assert pipe.closed.is_set()
    await far.aclose()


async def test_closing_wakes_a_reader_and_is_no_checkpoint():
    pipe, far = await socket_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await pipe.close()
    assert not scope.cancelled_caught
    with trio.fail_after(20):
        assert await pipe.read(1) == b""
    await far.aclose()


async def test_a_reset_is_told_from_an_end():
    pipe, far = await socket_pair()
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    await far.aclose()
    with pytest.raises(ConnectionClosedError):
        await pipe.read(1)
    await pipe.close()
