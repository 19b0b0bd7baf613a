"""TCP as libp2p should have it: cancels, dead sockets and closed connections do no lasting harm.

Noise advances its nonce before it awaits the socket, so a cancelled write would break the whole
connection: each raw write is shielded, bounded, and aborts the socket when it takes too long.  The
stock listener holds a slot for each connection until the host ends; here it goes with the socket.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from libp2p.abc import IRawConnection
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from llmesh.errors import ValidationFailed
from llmesh.net.libp2p.addresses import endpoint

__all__ = ["SocketPipe", "Tcp"]

# After this long without progress to the kernel a peer counts as gone; twice that is all that a write gets.
WRITE_SECONDS = 5.0
# One receive serves many small reads: Noise asks for two bytes, then for a body.
LARGE_BYTES = 16 * 1024
RECEIVE_BYTES = 256 * 1024
# libp2p's own cleanup after a close takes 0.1 s and must not be cut short, or it leaks its counters.
CLEANUP_SECONDS = 0.5


class SocketPipe(ReadWriteCloser):
    """One TCP socket under Noise: buffered reads, shielded writes; `closed` is set when it ends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.closed = trio.Event()
        self._stream = stream
        self._remote = _remote_of(stream)
        self._buffer = memoryview(b"")
        self._start = 0

    def take(self, n: int) -> memoryview | None:
        """The next `n` bytes without a copy, None where not as many are buffered."""
        start, end = self._start, self._start + n
        if end > len(self._buffer):
            return None
        self._start = end
        return self._buffer[start:end]

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, all that is buffered for None, and b"" at the end.  Safe to cancel."""
        if n == 0:
            return b""
        if self._start == len(self._buffer):
            self._buffer, self._start = memoryview(await self._receive()), 0
        start, size = self._start, len(self._buffer)
        self._start = end = size if n is None else min(start + n, size)
        return bytes(self._buffer[start:end])

    async def write(self, data: bytes | bytearray) -> None:
        """Send all of it, whatever is cancelled meanwhile; one write at a time.

        The socket dies after 5 s in which nothing went, and after 10 s in all.
        """
        sent = self._send_now(data)
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])
        elif sent >= LARGE_BYTES:
            await trio.lowlevel.cancel_shielded_checkpoint()  # others have their turn between large writes

    def _send_now(self, data: bytes | bytearray) -> int:
        """The bytes that the kernel took at once: mostly all, and no scope and no round of the scheduler."""
        try:
            return os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionClosedError("The connection is closed.", transport="tcp") from error

    async def _send_rest(self, rest: memoryview) -> None:
        end = trio.current_time() + 2 * WRITE_SECONDS
        with trio.CancelScope(shield=True, deadline=end - WRITE_SECONDS) as scope:
            try:
                while rest := rest[await self._stream.socket.send(rest) :]:
                    scope.deadline = min(trio.current_time() + WRITE_SECONDS, end)
                return
            except (OSError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("The connection is closed.", transport="tcp") from error
        await self.close()
        raise ConnectionClosedError(f"The peer took too little data in {WRITE_SECONDS:g} s.", transport="tcp")

    async def close(self) -> None:
        """Close the socket at once.  Never a checkpoint, so that no cleanup is cut in two here."""
        self._stream.socket.close()
        self.closed.set()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end."""
        return self._remote

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("The peer reset the connection.", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""


class Tcp(TCP):
    """The host's only transport."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect to one address.  Raises OpenConnectionError; a cancelled dial leaves no socket."""
        try:
            at = endpoint(str(maddr).partition("/p2p/")[0])
            return RawConnection(SocketPipe(await trio.open_tcp_stream(at.host, at.port)), initiator=True)
        except (OSError, ValidationFailed) as error:
            raise OpenConnectionError(f"Cannot connect to {maddr}: {error}") from error

    def create_listener(self, handler_function: Callable[[ReadWriteCloser], Awaitable[None]]) -> TCPListener:
        """A listener whose per-connection task ends when its connection does."""

        async def serve(accepted: ReadWriteCloser) -> None:
            pipe = SocketPipe(cast("TrioTCPStream", accepted).stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_once_closed, pipe, nursery.cancel_scope)
                await handler_function(pipe)
                nursery.cancel_scope.cancel()

        return super().create_listener(serve)


async def _cancel_once_closed(pipe: SocketPipe, connection: trio.CancelScope) -> None:
    await pipe.closed.wait()
    await trio.sleep(CLEANUP_SECONDS)
    connection.cancel()


def _remote_of(stream: trio.SocketStream) -> tuple[str, int] | None:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)
