"""Real hosts on loopback, opened and closed together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import pytest
import trio

from llmesh.core.ids import PeerId
from llmesh.net.libp2p.host import Libp2pHost, open_libp2p_host

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
    with trio.fail_after(8):
        while not condition():  # noqa: ASYNC110 -- libp2p tells nobody
            await trio.sleep(0.02)


@pytest.fixture
def eventually() -> Eventually:
    """Wait at most 8 s for a condition that libp2p brings about in tasks of its own."""
    return wait_until
