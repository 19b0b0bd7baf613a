"""The gateway on a real Hypercorn over loopback: what only sockets can show."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from h2.connection import H2Connection
from quart_trio import QuartTrio

from llmesh.core.inference import InferenceRequest, Result
from llmesh.gateway import server
from llmesh.gateway.server import _Door, bind, serve

BODY = b'{"model":"m","input":"hello"}'


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = [
        "POST /api/v1/inference HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def forever(request: InferenceRequest) -> Result:
    await trio.sleep_forever()
    raise AssertionError


async def read_answer(stream: trio.SocketStream) -> tuple[int, dict]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await receive(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")
    )
    while len(body) < length:
        body += await receive(stream)
    return int(head.split()[1]), json.loads(body)


async def receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    assert data, "closed before the answer was whole"
    return bytes(data)


async def test_one_connection_serves_many_requests(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(3):
            await stream.send_all(post(BODY))
            status, body = await read_answer(stream)
            assert (status, body["output"]["echo"]) == (200, "hello")


async def test_a_get_that_is_refused_leaves_its_connection_open(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(3):
            await stream.send_all(b"GET /api/v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, _ = await read_answer(stream)
            assert status == 404


async def test_stopping_ends_idle_connections_at_once(app: QuartTrio, monkeypatch) -> None:
    monkeypatch.setattr(server, "GRACE", 3600.0)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        listener = bind("127.0.0.1", 0)
        address = listener.getsockname()
        await nursery.start(serve, app, listener, stop)
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(post(BODY))
            await read_answer(stream)
            stop.set()
            with trio.fail_after(20):
                assert await stream.receive_some() == b""


async def test_a_client_that_hangs_up_cancels_its_inference(port: int, router) -> None:
    router.answer = forever
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(BODY))
        await router.entered.wait()
        assert not router.cancelled.is_set()
    with trio.fail_after(20):
        await router.cancelled.wait()


async def test_a_body_said_to_be_huge_is_refused_unread(port: int, router) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(b"{", length=10**12))
        with trio.fail_after(20):
            status, body = await read_answer(stream)
    assert (status, body["code"]) == (413, 4004)
    assert not router.requests


async def test_a_body_that_grows_huge_is_refused_on_the_way(port: int) -> None:
    head = post(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head + chunk * 4)
        with trio.fail_after(20):
            status, body = await read_answer(stream)
        assert (status, body["code"]) == (413, 4004)
        await stream.send_all(chunk)  # still taken, and dropped


async def test_the_node_stays_well_after_half_a_body(port: int) -> None:
    for _ in range(20):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(post(BODY, length=len(BODY) + 10))
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(BODY))
        assert (await read_answer(stream))[0] == 200


async def test_garbage_is_refused(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert (await receive(stream)).startswith(b"HTTP/1.1 400")


async def test_clients_that_come_and_go_leave_no_trace(port: int, caplog, router) -> None:
    random = Random(7)
    request = post(BODY)

    async def visit() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request[: random.randrange(1, len(request) + 20)])
            await trio.sleep(random.random() / 100)

    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(visit)
    assert router.requests
    assert not caplog.records


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: "
HANDSHAKE = (
    UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize(
    "data",
    [
        UPGRADE + b"h2c\r\nHTTP2-Settings: A\r\n\r\n",
        UPGRADE + b"h2c\r\nHTTP2-Settings: AAEAAABAAAIAAAACAAMAAAAA\r\n\r\n",
        HANDSHAKE + b"\xff" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"GET ? HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["settings-not-base64", "settings-of-no-sense", "websocket-garbage", "http2-garbage", "no-path"],
)
async def test_bytes_that_break_hypercorn_break_one_connection(port: int, data: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        with trio.move_on_after(0.2), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(BODY))
        assert (await read_answer(stream))[0] == 200


async def test_a_websocket_where_there_is_none_is_refused_quietly(port: int, caplog) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(HANDSHAKE.replace(b"/ws", b"/nowhere"))
        assert (await receive(stream)).startswith(b"HTTP/1.1 404")
    assert not caplog.records


async def test_stopping_lets_a_running_request_finish(app: QuartTrio, router) -> None:
    stop = trio.Event()
    answer = router.answer

    async def slow(request: InferenceRequest) -> Result:
        await trio.sleep(0.3)
        return await answer(request)

    router.answer = slow
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1])) as stream:
            await stream.send_all(post(BODY))
            await router.entered.wait()
            stop.set()
            assert (await read_answer(stream))[0] == 200


async def test_stopping_does_not_wait_for_ever(app: QuartTrio, router) -> None:
    router.answer = forever
    stop = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
            await stream.send_all(post(BODY))
            await router.entered.wait()
            stop.set()
    assert router.cancelled.is_set()
    await stream.aclose()


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_client_that_does_not_read_holds_nothing_up(app: QuartTrio, router, cancel: bool) -> None:
    small = router.answer

    async def big(request: InferenceRequest) -> Result:
        return replace(await small(request), output={"x": "y" * 20_000_000})

    router.answer = big
    stop = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
            await stream.send_all(post(BODY))
            await receive(stream)
            if cancel:
                nursery.cancel_scope.cancel()
            else:
                stop.set()
    await stream.aclose()


async def read_late(stream: trio.SocketStream, seconds: float) -> int:
    """Bytes that come after so many seconds without reading, until the connection is closed."""
    await trio.sleep(seconds)
    size = 0
    with trio.fail_after(20), suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(1 << 20):
            size += len(data)
    return size


BIG = 20_000_000


@pytest.fixture
def big(router) -> None:
    small = router.answer

    async def answer(request: InferenceRequest) -> Result:
        return replace(await small(request), output={"x": "y" * BIG})

    router.answer = answer


async def test_a_client_that_does_not_read_is_lost_in_time(port: int, big, monkeypatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(BODY))
        assert 0 < await read_late(stream, 2.0) < BIG


async def test_a_stream_that_is_not_read_is_given_up(port: int, router, monkeypatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    router.after = ["y" * (BIG // 20)] * 20
    router.answer = forever
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(post(BODY, "Accept: text/event-stream"))
        assert 0 < await read_late(stream, 2.0) < BIG
    assert router.entered.is_set() == router.cancelled.is_set()  # nothing goes on


async def test_a_window_that_never_opens_is_given_up(port: int, big, monkeypatch) -> None:
    monkeypatch.setattr(server, "LONGEST", 0.2)
    client = H2Connection()
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"), (":path", "/api/v1/inference"), (":scheme", "http"),
            (":authority", "localhost"), ("content-type", "application/json"),
        ],
    )  # fmt: skip
    client.send_data(1, BODY, end_stream=True)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(client.data_to_send())
        assert 0 < await read_late(stream, 2.0) < BIG


async def test_all_who_wait_are_let_in_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "door")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))  # where who connects waits at once
        listener.bind(path)
        listener.listen(9)
        door = _Door(listener)
        for _ in range(5):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        found = [await door.accept()]
        with trio.testing.assert_no_checkpoints():
            found += [await door.accept() for _ in range(4)]
        with trio.move_on_after(0) as nobody:
            await door.accept()
        assert nobody.cancelled_caught
        for each in (*found, door):
            await each.aclose()


async def test_cancelling_frees_the_port(app: QuartTrio) -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app, bind("127.0.0.1", 0), trio.Event())
        nursery.cancel_scope.cancel()
    bind("127.0.0.1", int(url.rsplit(":", 1)[1])).close()


def test_a_port_in_use_is_an_error() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", first.getsockname()[1])


def test_ipv6_where_there_is_any() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listener = bind("::1", 0)
    except OSError:
        pytest.skip("no IPv6 loopback")
    assert listener.family == socket.AF_INET6
    listener.close()


async def test_head_and_body_leave_in_one_write(app: QuartTrio, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    send_all = trio.SocketStream.send_all

    async def noted(stream: trio.SocketStream, data: bytes) -> None:
        if data:
            writes.append(bytes(data))
        await send_all(stream, data)

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
        async with stream:
            for line in (b"GET /healthz", b"HEAD /healthz"):
                monkeypatch.setattr(trio.SocketStream, "send_all", send_all)
                await stream.send_all(line + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                monkeypatch.setattr(trio.SocketStream, "send_all", noted)
                with trio.fail_after(5):
                    answer = await stream.receive_some()
                assert answer == writes.pop()
                assert answer.startswith(b"HTTP/1.1 200")
                assert (b'"ok"' in answer) == line.startswith(b"GET")
        assert not writes
        stop.set()
