"""Sealed bytes over one socket, against libp2p's own session at the other end."""

from __future__ import annotations

import random

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from noise.exceptions import NoiseInvalidMessage

from llmesh.net.libp2p.noise import MAX_PLAIN


async def read_all(session, size, seed):
    got, rng = b"", random.Random(seed)
    while len(got) < size:
        n = rng.choice([None, 1, 12, 5_000, MAX_PLAIN, 200_000])
        piece = await session.read(n if n is None else min(n, size - len(got)))
        assert n is None or len(piece) == n or len(got) + len(piece) == size
        got += piece
    return got


@pytest.mark.parametrize("dialled", [False, True])
async def test_libp2p_reads_what_is_written_and_the_other_way_round(two, dialled):
    sizes = [1, 2, 12, 4_000, MAX_PLAIN - 1, MAX_PLAIN, MAX_PLAIN + 1, 3 * MAX_PLAIN, 1_000_000]
    parts = [random.Random(size).randbytes(size) for size in sizes]
    sent = b"".join(parts)
    async with two(dialled=dialled) as (here, there, _):
        assert here.get_remote_peer() == there.get_local_peer() != here.get_local_peer()
        assert there.get_remote_peer() == here.get_local_peer()
        assert here.is_initiator is not dialled

        async def write(session):
            for part in parts:
                await session.write(part)

        async def read(session, seed):
            assert await read_all(session, len(sent), seed) == sent

        async with trio.open_nursery() as nursery:
            for seed, session in enumerate((here, there)):
                nursery.start_soon(write, session)
                nursery.start_soon(read, session, seed)
        assert await here.read(0) == b""


async def test_writes_of_many_leave_whole_or_not_at_all_whatever_is_cancelled(two):
    size, rng = 2 * MAX_PLAIN + 10, random.Random(3)
    written, read = set(), set()
    async with two() as (here, there, _):

        async def write(letter):
            with trio.move_on_after(rng.random() / 50):
                await here.write(letter * size)
                written.add(letter)

        async def read_until(last):
            while last not in read:
                piece = await there.read(size)
                assert piece == piece[:1] * size
                read.add(piece[:1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_until, b"\xff")
            async with trio.open_nursery() as writing:
                for letter in range(40):
                    writing.start_soon(write, bytes([letter]))
            await here.write(b"\xff" * size)
        assert written <= read


async def test_an_end_is_told_from_a_cut(two):
    async with two() as (here, there, pipe):
        await there.write(b"last")
        await pipe.write(b"\x01\x00half a message")
        await pipe.close()
        assert await here.read(4) == b"last"
        with pytest.raises(IncompleteReadError) as cut:
            await here.read(1)
        assert not cut.value.is_clean_close
        with pytest.raises(IncompleteReadError) as end:
            await here.read(1)
        assert end.value.is_clean_close


@pytest.mark.parametrize("length", [0, 3, 16, 40, 65_535])
async def test_what_the_peer_did_not_seal_is_refused(two, length):
    async with two() as (here, _, pipe), trio.open_nursery() as nursery:
        nursery.start_soon(pipe.write, length.to_bytes(2, "big") + bytes(length))
        with pytest.raises(NoiseInvalidMessage):
            await here.read(1)


async def test_an_empty_message_ends_it(two):
    async with two() as (here, there, _):
        await there.write(b"")
        with pytest.raises(ConnectionClosedError):
            await here.read(1)
