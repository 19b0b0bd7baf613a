"""Links between two real hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from llmesh.crypto import peer_id_of, public_key_of
from llmesh.errors import NetworkError
from llmesh.net.host import Link
from llmesh.net.libp2p.host import Libp2pHost, open_libp2p_host

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@asynccontextmanager
async def pair(accept: Callable[[Link], Awaitable[None]]) -> AsyncIterator[tuple[Libp2pHost, Libp2pHost]]:
    async with (
        open_libp2p_host(b"a" * 32, listen=LOOPBACK, judge=lambda _: None) as here,
        open_libp2p_host(b"b" * 32, listen=LOOPBACK, judge=lambda _: None) as there,
    ):
        there.serve(accept)
        yield here, there


async def echo(link: Link) -> None:
    while True:
        await link.write(await link.read())


async def read_all(link: Link, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await link.read()
    return got


async def test_a_link_carries_bytes_both_ways() -> None:
    async with pair(echo) as (here, there):
        assert peer_id_of(public_key_of(here.peer_id)) == here.peer_id
        link = await here.dial(there.peer_id, there.addresses)
        await link.write(b"hello")
        assert await link.read() == b"hello"
        assert link.initiator
        assert link.peer_id == there.peer_id
        assert link.remote_address == there.addresses[0]
        assert (here.connection_count, there.connection_count) == (1, 1)


async def test_a_closed_link_wakes_both_readers() -> None:
    ended = trio.Event()

    async def accept(link: Link) -> None:
        assert not link.initiator
        with pytest.raises(NetworkError):
            await link.read()
        ended.set()

    async with pair(accept) as (here, there), trio.open_nursery() as nursery:
        link = await here.dial(there.peer_id, there.addresses)

        async def reader() -> None:
            with pytest.raises(NetworkError, match="closed"):
                await link.read()

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        await link.aclose()
        with trio.fail_after(2):
            await ended.wait()
        with pytest.raises(NetworkError, match="closed"):
            await link.write(b"late")
