"""The session over real libp2p hosts on loopback: what in-memory links cannot show."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from llmesh.errors import NetworkError, RequestTimeout
from llmesh.net.call import Call
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions, open_sessions

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
rng = random.Random(11)


async def reverse(call: Call, message: bytes) -> None:
    await call.send(message[::-1])


async def late(call: Call, message: bytes) -> None:
    await trio.sleep(rng.uniform(0, 0.01))
    await call.send(message[::-1])


async def flood(call: Call, _message: bytes) -> None:
    while True:
        await call.send(bytes(60_000))


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Session, Sessions]]:
    """A session, and the sessions of the peer that serves it."""
    handlers = {"/reverse": reverse, "/late": late, "/flood": flood}
    async with (
        open_libp2p_host(b"a" * 32, listen=[LOOPBACK], judge=lambda _: None) as a,
        open_libp2p_host(b"b" * 32, listen=[LOOPBACK], judge=lambda _: None) as b,
        open_sessions(b, handlers) as theirs,
        open_sessions(a, handlers) as ours,
    ):
        with trio.fail_after(5):
            session = await ours.to(b.peer_id, b.addresses)
        yield session, theirs


async def ask(session: Session, protocol: str, message: bytes, timeout: float | None = None) -> bytes:
    async with session.call(protocol, message, timeout=timeout) as call:
        return await call.receive()


@pytest.mark.parametrize("size", [100, 600_000, 6_000_000])
async def test_calls_of_all_sizes_both_ways(size: int) -> None:
    message = random.Random(size).randbytes(size)
    async with pair() as (session, theirs):
        with trio.fail_after(20):
            assert await ask(session, "/reverse", message) == message[::-1]
            (back,) = theirs.live()
            assert await ask(back, "/reverse", message) == message[::-1]
        assert session.round_trip is not None
        assert session.hello.addresses[0].startswith("/ip4/127.0.0.1/tcp/")


async def test_slow_readers_hold_back_nobody() -> None:
    async with pair() as (session, _), trio.open_nursery() as nursery:

        async def never_reads() -> None:
            async with session.call("/flood", b""):
                await trio.sleep_forever()

        for _ in range(30):
            nursery.start_soon(never_reads)
        with trio.fail_after(10):
            await trio.sleep(6)  # yamux gives up after five seconds without window
            assert await ask(session, "/reverse", bytes(600_000)) == bytes(600_000)
        nursery.cancel_scope.cancel()


async def read_for_ever(session: Session, timeout: float | None = None) -> None:
    async with session.call("/flood", b"", timeout=timeout) as call:
        while True:
            await call.receive()
            await trio.sleep(0.01)


async def test_a_deadline_and_a_lost_peer_are_told_apart() -> None:
    async with pair() as (session, theirs):
        with trio.fail_after(5), pytest.raises(RequestTimeout):
            await read_for_ever(session, timeout=0.05)
        (back,) = theirs.live()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost, session)
            await trio.sleep(0.1)
            back.close()


async def lost(session: Session) -> None:
    with trio.fail_after(5), pytest.raises(NetworkError):
        await read_for_ever(session)


async def test_three_thousand_random_cancels_harm_no_other_call() -> None:
    """A cancel inside any libp2p read or write would break the whole connection."""
    async with pair() as (session, theirs):
        cancelled, done = 0, 0

        async def one(message: bytes, patience: float) -> None:
            nonlocal cancelled, done
            with trio.move_on_after(patience) as scope:
                assert await ask(session, "/late", message) == message[::-1]
                done += 1
            cancelled += scope.cancelled_caught

        async def client() -> None:
            while cancelled < 3000:
                size = 300_000 if rng.random() < 0.01 else 100
                await one(rng.randbytes(size), rng.uniform(0, 0.012) if rng.random() < 0.8 else 60)

        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(client)
            assert cancelled >= 3000
            assert done > 500
            assert await ask(session, "/reverse", b"abc") == b"cba"
        assert session.idle
        (back,) = theirs.live()
        await trio.sleep(0.1)
        assert back.idle
