"""The socket itself: frames, errors, limits, keys, and how it is closed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
import trio.lowlevel

from llmesh.core.ids import PeerId
from llmesh.gateway.websocket import socket
from llmesh.mesh.events import PeerChange, PeerUpdated

if TYPE_CHECKING:
    from tests.gateway.conftest import FakeNode
    from tests.gateway.websocket.conftest import Client

Connect: TypeAlias = "Callable[..., AbstractAsyncContextManager[Client]]"
Gateway: TypeAlias = "Callable[..., AbstractAsyncContextManager[Connect]]"
SUBSCRIBE = '{"type": "subscribe", "events": ["inference", "peer_update", "model_announce"]}'


async def push(send: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
    """Go on sending until that fails."""
    while True:
        await send(data)
        await trio.lowlevel.checkpoint()


def peer(number: int) -> PeerUpdated:
    return PeerUpdated(PeerId(f"peer {number}"), PeerChange.UP)


def told(number: int, dropped: int = 0) -> dict[str, Any]:
    data = {"peer_id": f"peer {number}", "change": "up"}
    return {"type": "event", "event": "peer_update", "data": data, "dropped": dropped}


async def test_the_contracts_subscription_brings_events_until_it_is_ended(
    connect: Connect, node: FakeNode
) -> None:
    async with connect() as client:
        await client.send(SUBSCRIBE)
        names = ["inference", "model_announce", "peer_update"]
        assert await client.receive() == {"type": "subscribed", "events": names}
        node.events.tell(peer(1))
        assert await client.receive() == told(1)
        await client.send({"type": "unsubscribe", "events": ["peer_update"]})
        assert await client.receive() == {"type": "subscribed", "events": names[:2]}
        node.events.tell(peer(2))
        await client.send({"type": "unsubscribe"})
        assert await client.receive() == {"type": "subscribed", "events": []}
        await client.send({"type": "ping", "id": "p"})
        assert await client.receive() == {"type": "pong", "id": "p"}


def stream(**fields: object) -> str:
    return json.dumps({"type": "inference_stream", "id": "x", "model": "m", "input": "t"} | fields)


DEEP = stream().replace('"t"', '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}")


@pytest.mark.parametrize(
    ("frame", "words", "id"),
    [
        ("not JSON", "not JSON", None),
        ("", "not JSON", None),
        ('"text"', "Expected `object`", None),
        ("[1]", "Expected `object`", None),
        ('{"type": "nope", "id": "x"}', "'nope'", "x"),
        ('{"id": "x"}', "`type`", "x"),
        ('{"type": "subscribe", "events": ["weather"]}', "'weather'", None),
        ('{"type": "subscribe", "events": []}', "events", None),
        ('{"type": "ping", "more": 1}', "more", None),
        ('{"type": "cancel", "id": "x"}', "'x'", "x"),
        ('{"type": "inference_stream", "id": "x", "model": "m"}', "input", "x"),
        (DEEP, "nested too deeply", None),
        (stream(model="!"), "model name", "x"),
        (stream(timeout=-1), "timeout", "x"),
        (stream(max_fee="?"), "max_fee", "x"),
        (stream(id=""), "id", None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_frame_is_refused_and_the_socket_stays(
    connect: Connect, frame: str, words: str, id: str | None
) -> None:
    async with connect() as client:
        for send in (client.send, lambda frame: client.send_bytes(frame.encode())):
            await send(frame)
            error = await client.receive()
            assert (error["type"], error["code"], error["name"]) == ("error", 1004, "ValidationFailed")
            assert words in error["message"]
            assert error.get("id") == id
            assert error["next_step"]
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}


async def test_a_frame_that_is_too_large_is_told_and_ends_the_socket_cleanly(connect: Connect) -> None:
    async with connect() as client:
        await client.send("x" * (10 << 20))
        error = await client.receive()
        assert (error["code"], error["name"]) == (4004, "TooLarge")
        assert await client.closed() == (1009, "A frame has at most 1048576 bytes.")


async def test_a_frame_that_never_ends_is_cut(connect: Connect) -> None:
    async with connect() as client:
        await client.stream.send_all(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask")
        with pytest.raises(trio.BrokenResourceError):
            await push(client.stream.send_all, bytes(1 << 20))


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}],
)
async def test_foreign_pages_and_hosts_are_refused_before_the_handshake(
    connect: Connect, headers: dict[str, str]
) -> None:
    with pytest.raises(Exception, match="401") as refused:
        async with connect(**headers):
            pass
    assert refused.value.problem["code"] == 4001  # type: ignore[attr-defined]


async def test_a_page_of_this_very_host_is_let_in(connect: Connect, port: int) -> None:
    async with connect(Origin=f"http://localhost:{port}") as client:
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}


async def test_a_slow_client_loses_the_oldest_events_and_is_told_how_many(
    connect: Connect, node: FakeNode
) -> None:
    async with connect() as client:
        await client.send(SUBSCRIBE)
        await client.receive()
        large, count = "x" * 50_000, 1000
        for number in range(count):
            node.events.tell(PeerUpdated(PeerId(f"{number} {large}"), PeerChange.UP))
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
        node.events.tell(peer(0))
        read = dropped = 0
        while (frame := await client.receive()) != told(0):
            read, dropped = read + 1, dropped + frame["dropped"]
        assert read + dropped == count
        assert dropped > 500


async def test_who_asks_on_without_reading_is_hung_up_on(connect: Connect) -> None:
    async with connect() as client:
        with pytest.raises(trio.BrokenResourceError):
            await push(client.send_bytes, b"?" * 1000)


async def test_a_client_that_reads_nothing_for_long_is_hung_up_on(gateway: Gateway, node: FakeNode) -> None:
    async with gateway(ping=0.05, patience=0.1) as connect, connect() as client:
        await client.send(SUBSCRIBE)
        for number in range(400):
            node.events.tell(PeerUpdated(PeerId(f"{number} " + "x" * 50_000), PeerChange.UP))
            await trio.sleep(0.001)
        code, _ = await client.closed()
        assert code == 1006


async def test_pings_come_and_idle_sockets_go(gateway: Gateway) -> None:
    async with gateway(ping=0.05, idle=0.3) as connect, connect() as idle, connect() as listener:
        await listener.send(SUBSCRIBE)
        await listener.receive()
        assert await idle.closed() == (1000, "Nothing was asked for too long.")
        assert idle.pings > 1
        await listener.send({"type": "ping"})
        assert await listener.receive() == {"type": "pong"}


async def test_the_first_ping_of_a_socket_comes_at_random(gateway: Gateway, monkeypatch) -> None:
    monkeypatch.setattr(socket._chance, "random", lambda: 0.0)
    async with gateway(ping=3600.0) as connect, connect() as client:
        with trio.fail_after(20):
            while not client.pings:
                await client.send({"type": "ping"})
                await client.receive()


async def test_an_unused_socket_makes_room_and_used_ones_do_not(gateway: Gateway) -> None:
    async with gateway(sockets=3) as connect, AsyncExitStack() as stack:
        old, *others = [await stack.enter_async_context(connect()) for _ in range(3)]
        async with connect() as newest:
            assert (await old.closed())[0] == 1013
            for used in (*others, newest):
                await used.send(SUBSCRIBE)
                await used.receive()
            with pytest.raises(Exception, match="503") as refused:
                async with connect():
                    pass
            assert refused.value.problem["code"] == 2003  # type: ignore[attr-defined]


async def test_a_node_that_stops_says_so_at_once(gateway: Gateway) -> None:
    stop = trio.Event()
    async with gateway(stop=stop) as connect, connect() as client:
        await client.send(SUBSCRIBE)
        await client.receive()
        stop.set()
        assert await client.closed() == (1001, "This node is shutting down.")


async def test_a_fault_of_the_node_closes_with_its_own_code(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmesh.gateway.websocket.socket.Pong", None)
    async with gateway() as connect, connect() as client:
        await client.send({"type": "ping"})
        assert await client.closed() == (1011, "This node failed through a fault of its own.")
    assert "TypeError" in caplog.text


async def test_plain_http_at_the_path_is_told_what_it_is(port: int) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 400")


async def test_idle_sockets_are_bounded_and_take_nothing_from_others(gateway: Gateway) -> None:
    async with gateway(sockets=20) as connect, connect() as good, AsyncExitStack() as stack:
        await good.send(SUBSCRIBE)
        await good.receive()
        idle = [await stack.enter_async_context(connect()) for _ in range(60)]
        for _ in range(20):
            await good.send({"type": "ping"})
            assert await good.receive() == {"type": "pong"}
        for client in idle[:41]:
            assert (await client.closed())[0] == 1013
