"""Keys on a socket: in the handshake or the first frame, and gone when they are revoked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.gateway.callers import GRANTS, Scope
from llmesh.gateway.gate import Gate
from llmesh.gateway.keys import Keys, open_keys
from llmesh.gateway.limits import Limits
from llmesh.gateway.rates import Rate, Rates
from llmesh.journal.open import open_journal

if TYPE_CHECKING:
    from tests.gateway.conftest import FakeRouter
    from tests.gateway.websocket.conftest import Client

Connect: TypeAlias = "Callable[..., AbstractAsyncContextManager[Client]]"
Gateway: TypeAlias = "Callable[..., AbstractAsyncContextManager[Connect]]"
SUBSCRIBE = {"type": "subscribe", "events": ["inference"]}
STREAM = {"type": "inference_stream", "id": "a", "model": "m", "input": "x"}


@pytest.fixture
async def keys(tmp_path: Path):
    async with (
        open_journal(tmp_path / "journal.db", PeerId("12D3KooW" + "A" * 44)) as journal,
        open_keys(journal, b"s" * 32) as keys,
    ):
        yield keys


async def test_a_key_may_come_in_the_handshake_and_pays(
    gateway: Gateway, keys: Keys, router: FakeRouter
) -> None:
    row, key = await keys.create("k", GRANTS, Amount.parse(5))
    async with gateway(Gate(keys=keys)) as connect:
        async with connect(Authorization=f"Bearer {key}") as client:
            await client.send(STREAM)
            assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "completed"]
        assert router.purses == [keys.purse(row)]
        with pytest.raises(Exception, match="401"):
            async with connect(Authorization=f"Bearer {key}x"):
                pass


async def test_a_key_may_come_in_a_frame_and_before_it_nothing_is_done(gateway: Gateway, keys: Keys) -> None:
    row, key = await keys.create("k", GRANTS, None)
    async with gateway(Gate(keys=keys)) as connect, connect() as client:
        for frame in (SUBSCRIBE, STREAM, {"type": "auth", "key": "llmesh_wrong"}):
            await client.send(frame)
            error = await client.receive()
            assert (error["code"], error["name"]) == (4001, "Unauthorized")
        await client.send({"type": "auth", "key": key})
        assert await client.receive() == {"type": "authenticated", "name": row.id}
        await client.send(SUBSCRIBE)
        assert await client.receive() == {"type": "subscribed", "events": ["inference"]}


async def test_without_a_key_in_time_it_is_closed(gateway: Gateway, keys: Keys) -> None:
    await keys.create("k", GRANTS, None)
    async with gateway(Gate(keys=keys), auth=0.1) as connect, connect() as client:
        assert await client.closed() == (1008, "No key that holds was shown in time.")


async def test_a_revoked_key_does_nothing_more_and_is_soon_shut_out(gateway: Gateway, keys: Keys) -> None:
    row, key = await keys.create("k", GRANTS, None)
    async with gateway(Gate(keys=keys), ping=0.2) as connect, connect() as client:
        await client.send({"type": "auth", "key": key})
        await client.receive()
        await keys.revoke(row.id)
        await client.send(STREAM)
        assert (await client.receive())["code"] == 4001
        assert (await client.closed())[0] == 1008


async def test_a_stream_takes_the_scope_and_counts_as_an_inference(gateway: Gateway, keys: Keys) -> None:
    _, reader = await keys.create("reader", frozenset({Scope.READ}), None)
    _, key = await keys.create("k", GRANTS, None)
    limits = Limits(Rates(inference=Rate(1, 60)))
    async with gateway(Gate(keys=keys, limits=limits)) as connect:
        async with connect(Authorization=f"Bearer {reader}") as client:
            await client.send(STREAM)
            assert (await client.receive())["code"] == 4001
        async with connect(Authorization=f"Bearer {key}") as client:
            await client.send(STREAM)
            assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "completed"]
            await client.send(STREAM)
            error = await client.receive()
            assert (error["code"], error["id"]) == (4002, "a")
            assert 0 < error["retry_after"] <= 60
