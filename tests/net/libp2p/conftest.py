"""Real hosts on loopback, opened and closed together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport

from llmesh.core.ids import PeerId
from llmesh.net.libp2p.host import Libp2pHost, open_libp2p_host
from llmesh.net.libp2p.noise import Noise, Session
from llmesh.net.libp2p.transport import SocketPipe

Eventually: TypeAlias = Callable[[Callable[[], bool]], Awaitable[None]]
OpenHosts: TypeAlias = Callable[[int], AbstractAsyncContextManager[list[Libp2pHost]]]


def judge(record: bytes) -> tuple[PeerId, int] | None:
    """Stands for signature and expiry: a record is JSON with a peer and a sequence number."""
    claim = json.loads(record)
    return None if claim.get("forged") else (PeerId(claim["peer"]), claim["sequence"])


@asynccontextmanager
async def open_some_hosts(count: int) -> AsyncIterator[list[Libp2pHost]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_libp2p_host(bytes([number + 1] * 32), listen=["/ip4/127.0.0.1/tcp/0"], judge=judge)
            )
            for number in range(count)
        ]


@pytest.fixture(autouse=True)
def no_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the routing tables' own lookups out of tests that count connections."""
    monkeypatch.setattr("llmesh.net.libp2p.dht.REFRESH_SECONDS", (600.0,))


@pytest.fixture
def open_hosts() -> OpenHosts:
    """Open so many hosts with identities of their own."""
    return open_some_hosts


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 -- libp2p tells nobody
            await trio.sleep(0.02)


@pytest.fixture
def eventually() -> Eventually:
    """Wait at most 30 s for a condition that libp2p brings about in tasks of its own."""
    return wait_until


_OURS, _THEIRS = create_new_key_pair(bytes(32)), create_new_key_pair(bytes([1] * 32))


@asynccontextmanager
async def open_two(*, dialled: bool = False) -> AsyncIterator[tuple[Any, Any, SocketPipe]]:
    """A session of ours, which dialled or was dialled, libp2p's own at its other end, and that one's pipe."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near = SocketPipe(await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]))
    far = SocketPipe(await listener.accept())
    await listener.aclose()
    sessions = []

    async def secure(kind: type[Transport], own: KeyPair, other: KeyPair, conn: RawConnection) -> None:
        noise = kind(own, noise_privkey=create_new_noise_pair().private_key)
        if conn.is_initiator:
            sessions.append(await noise.secure_outbound(conn, ID.from_pubkey(other.public_key)))
        else:
            sessions.append(await noise.secure_inbound(conn))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(secure, Noise, _OURS, _THEIRS, RawConnection(near, not dialled))
        nursery.start_soon(secure, Transport, _THEIRS, _OURS, RawConnection(far, dialled))
    here, there = sorted(sessions, key=lambda session: not isinstance(session, Session))
    yield here, there, far
    await near.close()
    await far.close()


@pytest.fixture
def two() -> Callable[..., AbstractAsyncContextManager[tuple[Any, Any, SocketPipe]]]:
    """Open two sealed sessions over one socket, ours and libp2p's own."""
    return open_two
