"""Frames of yamux by two ways, and libp2p's own multiplexer at the other end."""

from __future__ import annotations

import itertools
import random
import struct
import tracemalloc
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    HEADER_SIZE,
    MAX_WINDOW_SIZE,
    PROTOCOL_ID,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
)

from llmesh.errors import NetworkError
from llmesh.net.libp2p.inlets import LARGE_BYTES, Inlet, Inlets, Muxers
from llmesh.net.libp2p.link import WRITE_BYTES, open_link


class Messages:
    """Stands for a session: bytes come in messages of a given cut."""

    local_peer = remote_peer = ID(b"x")
    local_private_key, remote_permanent_pubkey = (lambda pair: (pair.private_key, pair.public_key))(
        create_new_key_pair(bytes(32))
    )
    is_initiator, conn, write = True, None, None

    def __init__(self, data, cuts):
        edges = [0, *sorted(cuts), len(data)]
        self.messages = [data[a:b] for a, b in itertools.pairwise(edges) if b > a]

    async def some(self, most):
        message = self.messages.pop(0)
        if message[most:]:
            self.messages.insert(0, message[most:])
        return memoryview(message[:most])

    async def read(self, n):
        got = b""
        while len(got) < n:
            got += await self.some(n - len(got))
        return got


def header(kind, flags, stream, length):
    return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream, length)


def frame(kind, flags, stream, body):
    return header(kind, flags, stream, len(body)) + body


async def libp2p_reads(inlets, data_read):
    """As libp2p does: a header, and the body where it is one of data."""
    while True:
        head = await inlets.read(HEADER_SIZE)
        _, kind, _, _, length = struct.unpack(YAMUX_HEADER_FORMAT, head)
        body = await inlets.read(length) if kind == TYPE_DATA and length else b""
        data_read.append(head + body)


def random_frames(rng):
    for _ in range(60):
        kind = rng.choice([TYPE_DATA] * 6 + [TYPE_WINDOW_UPDATE, TYPE_PING])
        flags = rng.choice([0] * 5 + [FLAG_SYN, FLAG_ACK, FLAG_FIN, FLAG_RST])
        body = rng.randbytes(rng.choice([0, 1, 12, 200, 5_000])) if kind == TYPE_DATA else b""
        yield kind, flags, rng.choice([1, 1, 3]), body


def taken(inlet):
    return b"".join(iter(inlet.take, b""))


@pytest.mark.parametrize("seed", range(20))
async def test_only_data_of_the_inlets_stream_goes_past_libp2p(seed):
    rng = random.Random(seed)
    sent, for_inlet, for_libp2p = b"", b"", []
    for kind, flags, stream, body in random_frames(rng):
        sent += frame(kind, flags, stream, body)
        if kind == TYPE_DATA and stream == 1 and not flags & FLAG_SYN:
            for_inlet += body
            for_libp2p += [header(kind, flags, stream, 0)] if flags else []
        else:
            for_libp2p.append(frame(kind, flags, stream, body))
    cuts = sorted(rng.randrange(len(sent)) for _ in range(rng.choice([0, 5, 300])))
    woken, seen = [], []
    inlet = Inlet(1 << 20, lambda: woken.append(1))
    inlets = Inlets(Messages(sent, cuts))
    inlets.open_inlet(1, inlet)
    with pytest.raises(IndexError):
        await libp2p_reads(inlets, seen)
    assert seen == for_libp2p
    assert inlets.unread == inlet.unread == len(for_inlet)
    assert inlet.room == (1 << 20) - len(for_inlet)
    assert woken
    assert taken(inlet) == for_inlet
    assert inlets.unread == 0


async def test_a_frame_without_end_is_left_to_libp2p_which_hangs_up():
    inlets = Inlets(Messages(header(TYPE_DATA, 0, 1, MAX_WINDOW_SIZE + 1) + b"x", []))
    inlet = Inlet(1 << 30, lambda: None)
    inlets.open_inlet(1, inlet)
    assert await inlets.read(HEADER_SIZE) == header(TYPE_DATA, 0, 1, MAX_WINDOW_SIZE + 1)
    assert inlet.unread == 0


async def test_libp2p_gets_what_comes_after_a_inlet_is_closed():
    first, second = (frame(TYPE_DATA, 0, 1, body) for body in (b"first", b"second"))
    inlets, seen = Inlets(Messages(first + header(TYPE_PING, 0, 0, 7) + second, [])), []
    inlet = Inlet(100, lambda: None)
    inlets.open_inlet(1, inlet)
    assert await inlets.read(HEADER_SIZE) == header(TYPE_PING, 0, 0, 7)
    inlets.close_inlet(1)
    with pytest.raises(IndexError):
        await libp2p_reads(inlets, seen)
    assert taken(inlet) == b"first"
    assert seen == [second]


def test_nothing_is_kept_beyond_the_room():
    inlet = Inlet(10, lambda: None)
    inlet.arrive(memoryview(b"0123456789"))
    assert inlet.room == 0
    for _ in range(3):
        inlet.arrive(memoryview(b"more"))
    assert inlet.room < 0
    assert inlet.unread == 10
    assert taken(inlet) == b"0123456789"


def test_small_pieces_keep_no_large_messages_in_memory():
    inlet = Inlet(1 << 22, lambda: None)
    tracemalloc.start()
    try:
        for number in range(1_000):
            message = bytes([number % 256]) * 65_519
            inlet.arrive(memoryview(message)[100:110])
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert inlet.unread == 10_000
    inlet.arrive(memoryview(bytes(LARGE_BYTES)))
    inlet.arrive(memoryview(b"last"))
    assert (
        taken(inlet) == b"".join(bytes([n % 256]) * 10 for n in range(1_000)) + bytes(LARGE_BYTES) + b"last"
    )


@asynccontextmanager
async def muxed(two, *, dialled):
    """A link of ours over a stream that libp2p's own stack opened or accepted, and that stream."""
    kinds = {TProtocol(PROTOCOL_ID): Yamux}
    async with two(dialled=dialled) as (here, there, _), trio.open_nursery() as nursery:
        muxers = {}

        async def begin(name, kind, session):
            muxers[name] = await kind(kinds).new_conn(session, session.get_remote_peer())

        async with trio.open_nursery() as beginning:
            beginning.start_soon(begin, "here", Muxers, here)
            beginning.start_soon(begin, "there", MuxerMultistream, there)
        for muxer in muxers.values():
            nursery.start_soon(muxer.start)
            await muxer.event_started.wait()
        if dialled:
            theirs = await muxers["there"].open_stream()
            ours = await muxers["here"].accept_stream()
        else:
            ours = await muxers["here"].open_stream()
            theirs = await muxers["there"].accept_stream()
        yield await open_link(NetStream(ours, None, None), initiator=not dialled), theirs
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("dialled", [False, True])
async def test_a_link_talks_with_libp2ps_own_streams_both_ways(two, dialled):
    data = random.Random(1).randbytes(6_000_000)

    async def write(link):
        for start in range(0, len(data), WRITE_BYTES):
            await link.write(data[start : start + WRITE_BYTES])

    async def read(link):
        got = bytearray()
        while len(got) < len(data):
            got += await link.read()
        assert got == data

    async def serve(stream):
        got = bytearray()
        while len(got) < len(data):
            got += await stream.read(1 << 20)
        assert got == data

    with trio.fail_after(60):
        async with muxed(two, dialled=dialled) as (link, stream), trio.open_nursery() as nursery:
            nursery.start_soon(write, link)
            nursery.start_soon(read, link)
            nursery.start_soon(serve, stream)
            nursery.start_soon(stream.write, data)


async def test_what_came_before_an_end_is_read_before_the_end(two):
    with trio.fail_after(20):
        async with muxed(two, dialled=True) as (link, stream):
            await stream.write(b"x" * 200_000)
            await stream.close()
            got = b""
            while len(got) < 200_000:
                got += await link.read()
            with pytest.raises(NetworkError, match="ended"):
                await link.read()


async def test_a_reset_from_either_side_ends_the_other(two):
    with trio.fail_after(20):
        async with muxed(two, dialled=True) as (link, stream):
            await stream.reset()
            with pytest.raises(NetworkError, match="ended"):
                await link.read()
        async with muxed(two, dialled=False) as (link, stream):
            await link.aclose()
            with pytest.raises(MuxedStreamEOF):
                await stream.read(1)
