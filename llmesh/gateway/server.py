"""Hypercorn around the gateway's application: the socket, the limits, the way to stop.

The accepting is ours and each connection is Hypercorn's: left to itself, Hypercorn cannot stop while
a client leaves an answer unread, and would wait for it for ever.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    LifespanState,
    Scope,
)  # fmt: skip
from quart_trio import QuartTrio
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh.gateway.websocket.line import lay

__all__ = ["bind", "serve"]

GRACE = 2.0
"""Seconds that running requests get to finish once `stop` is set."""
KEEP_ALIVE = 30.0
"""Seconds a connection may take to send the next request's head; clients should give up sooner."""
PATIENCE = 60.0
"""Seconds that a client may take to read each _PIECE of an answer; then it counts as lost."""
LONGEST = 300.0
"""Seconds that one send of an application may take: over HTTP/2 the wait is not for the socket."""
_BACKLOG = 256
_PIECE = 64 * 1024
_CONNECTION = "connection"

_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # the node itself tells where it listens


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.  Raises OSError where that cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    app: QuartTrio,
    listener: socket.socket,
    stop: trio.Event,
    *,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; then let running requests finish for GRACE seconds.

    Takes the socket over and closes it.  Reports the URL once requests are accepted.  Cancelling
    cuts running requests off at once.
    """
    url = _url(listener)
    listeners = [_Door(listener)]
    context = WorkerContext(None)
    handler = partial(_handle, ASGIWrapper(_served(app)), _config(), context, stop)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            await accepting.start(
                partial(trio.serve_listeners, handler, listeners, handler_nursery=connections)
            )
            task_status.started(url)
            await stop.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + GRACE


class _Door(trio.abc.Listener[trio.SocketStream]):
    """A listener that lets in all who wait at once.

    Trio takes one for each turn of its loop: while the loop is busy with those who are in, a turn takes
    long, and the last of a crowd would wait for seconds to be let in at all.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._first = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._others: deque[trio.SocketStream] = deque()

    async def accept(self) -> trio.SocketStream:
        """The next one; it waits only where nobody else does."""
        if not self._others:
            self._others.append(await self._first.accept())
            self._others.extend(islice(self._waiting(), _BACKLOG))
        return self._others.popleft()

    def _waiting(self) -> Iterator[trio.SocketStream]:
        with suppress(OSError):  # nobody; any other fault comes again to whoever waits for the next one
            while True:
                yield trio.SocketStream(trio.socket.from_stdlib_socket(self._listener.accept()[0]))

    async def aclose(self) -> None:
        await self._first.aclose()


def _served(app: QuartTrio) -> ASGIFramework:
    """The application, with a bounded line under each WebSocket, and sends of HTTP that no cancel cuts short.

    The last send of an answer makes Quart-Trio cancel the task that is in it, and Hypercorn then
    never starts the timer that ends idle connections.  A send that takes longer than LONGEST ends its
    connection.
    """

    async def served(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":
            lay(scope, send)
            await app(scope, receive, send)
            return

        connection: _Connection = scope["state"][_CONNECTION]

        async def send_whole(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                connection.hold()
            with trio.move_on_after(LONGEST) as sending:
                sending.shield = True  # like Hypercorn's own writes; see `_handle`
                await send(event)
            if sending.cancelled_caught:
                scope["state"]["abort"]()

        await app(scope, receive, send_whole)

    return served


async def _handle(
    app: ASGIWrapper, config: Config, context: WorkerContext, stop: trio.Event, stream: trio.SocketStream
) -> None:
    """One connection, whose faults stay its own.

    Hypercorn shields its writes, so a cancel has to close the socket under them; and it raises on
    some hostile bytes (bad HTTP2-Settings, WebSocket data before the handshake's answer).
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_when_cancelled, stream)
            connection = _Connection(stream)
            state = {"stopping": stop, "abort": nursery.cancel_scope.cancel, _CONNECTION: connection}
            await TCPServer(app, config, context, LifespanState(state), connection)  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()
    except* Exception as faults:
        _log.warning("A connection was dropped: %r", faults.exceptions[0])


class _Connection(trio.abc.HalfCloseableStream):
    """A connection that is closed when its client does not read what is sent.

    The head of an answer leaves with what follows it, in one write: Hypercorn writes each by itself, and
    a body, if only an empty one, always comes.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self._held = b""
        self._holding = False

    def hold(self) -> None:
        """Let the next bytes wait for those after them."""
        self._holding = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream's, each piece within PATIENCE.  Raises BrokenResourceError for a client too slow."""
        joined, self._held = self._held + data, b""
        if self._holding:
            self._holding, self._held = False, joined
            return
        whole = memoryview(joined)
        for start in range(0, len(whole), _PIECE):
            with trio.move_on_after(PATIENCE) as reading:
                await self._stream.send_all(whole[start : start + _PIECE])
            if reading.cancelled_caught:
                self.socket.close()
                raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _close_when_cancelled(stream: trio.SocketStream) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stream.socket.close()


def _config() -> Config:
    config = Config()
    config.errorlog = _log
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    config.keep_alive_max_requests = 1_000_000
    return config


def _url(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
