"""A client of frames over a real socket, and a gateway whose bounds a test may choose."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import Ping as ProtocolPing
from wsproto.utilities import LocalProtocolError

from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.gate import Gate
from llmesh.gateway.server import bind, serve
from llmesh.gateway.websocket.socket import Bounds

if TYPE_CHECKING:
    from tests.gateway.conftest import FakeNode, FakeRouter


class Closed(Exception):
    def __init__(self, code: int, reason: str | None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
        self.problem: dict[str, Any] = {}


class Client:
    """One WebSocket: `send` a frame, `receive` the next one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.pings = 0
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, port: int, headers: dict[str, str]) -> None:
        host = headers.pop("Host", f"localhost:{port}")
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._write(Request(host=host, target="/ws", extra_headers=extra))
        event = await self._next()
        if isinstance(event, RejectConnection):
            refused, body = Refused(event.status_code), b""
            while isinstance(part := await self._next(), RejectData):
                body += part.data
                if part.body_finished:
                    break
            refused.problem = json.loads(body)
            raise refused
        assert isinstance(event, AcceptConnection)
        assert event.extensions == [], "no compression is agreed to"

    async def send(self, frame: object) -> None:
        text = frame if isinstance(frame, str) else json.dumps(frame, ensure_ascii=False)
        await self._write(TextMessage(text))

    async def send_bytes(self, data: bytes) -> None:
        await self._write(BytesMessage(data))

    async def receive(self) -> dict[str, Any]:
        text = ""
        while True:
            match await self._next():
                case ProtocolPing() as ping:
                    self.pings += 1
                    with suppress(LocalProtocolError):  # a close came right behind it
                        await self._write(ping.response())
                case CloseConnection(code=code, reason=reason):
                    raise Closed(int(code), reason)
                case Message(data=str(part), message_finished=whole):
                    text += part
                    if whole:
                        frame: dict[str, Any] = json.loads(text)
                        return frame

    async def closed(self) -> tuple[int, str | None]:
        """How it ends, whatever still comes."""
        with trio.fail_after(5):
            while True:
                try:
                    await self.receive()
                except Closed as closed:
                    return closed.code, closed.reason

    async def _write(self, event: Event) -> None:
        await self.stream.send_all(self._protocol.send(event))

    async def _next(self) -> Event:
        while not self._events:
            data = await self.stream.receive_some(65536)
            if not data:
                raise Closed(1006, "no close frame")
            self._protocol.receive_data(data)
            self._events.extend(self._protocol.events())
        return self._events.pop(0)


@asynccontextmanager
async def opened(port: int, **headers: str) -> AsyncIterator[Client]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        client = Client(stream)
        named = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        with trio.fail_after(5):
            await client.open(port, named)
        with trio.fail_after(20):
            yield client


@pytest.fixture
def connect(port: int) -> Callable[..., AbstractAsyncContextManager[Client]]:
    """Opens a socket of the gateway; keywords are headers."""

    def connect(**headers: str) -> AbstractAsyncContextManager[Client]:
        return opened(port, **headers)

    return connect


@pytest.fixture
def gateway(
    router: FakeRouter, node: FakeNode
) -> Callable[..., AbstractAsyncContextManager[Callable[..., AbstractAsyncContextManager[Client]]]]:
    """Serves the same node with bounds of one's own; the block gets what opens a socket."""

    @asynccontextmanager
    async def serving(
        gate: Gate | None = None, stop: trio.Event | None = None, **bounds: float
    ) -> AsyncIterator[Callable[..., AbstractAsyncContextManager[Client]]]:
        settings = GatewaySettings(gate or Gate(), sockets=replace(Bounds(), **bounds))  # type: ignore[arg-type]
        stopping = trio.Event() if stop is None else stop
        async with trio.open_nursery() as nursery:
            app = create_app(router, None, node, settings)  # type: ignore[arg-type]
            url: str = await nursery.start(serve, app, bind("127.0.0.1", 0), stopping)
            port = int(url.rsplit(":", 1)[1])
            yield lambda **headers: opened(port, **headers)
            stopping.set()
            nursery.cancel_scope.deadline = trio.current_time() + 5

    return serving
