"""Closed-loop clients over raw sockets: as little client as HTTP/1.1 and WebSockets allow.

Each client asks again as soon as it has a whole answer.  They run in one thread of one process, so
that what is measured is the server's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Question", "Tally", "chunked", "frames", "load", "post", "text_frame", "upgrade", "whole"]

Whole = Callable[[bytearray], int]
"""The bytes of a whole answer at the beginning of a buffer; 0 while there is none."""
PATIENCE = 20.0


@dataclass(frozen=True)
class Question:
    """What each client sends when it connects (may be nothing), what it then asks, how an answer ends."""

    port: int
    asked: bytes
    ends: Whole
    hello: bytes = b""


@dataclass
class Tally:
    """What came of it: answers by the first line's status, and the milliseconds that each took."""

    times: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.times) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the answers kept within."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class _Client(asyncio.Protocol):
    def __init__(self, question: Question, tally: Tally) -> None:
        self._question = question
        self._tally = tally
        self._until = 0.0
        self._buffer = bytearray()
        self._since = 0.0
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def begin(self, until: float) -> None:
        """Ask, again and again, until that time."""
        self._until = until
        self._ask()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._question.hello:
            transport.write(self._question.hello)
        else:
            self.ready.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.ready.done():
            self._greet()
        elif size := self._question.ends(self._buffer):
            self._count(bytes(self._buffer[:size]))
            del self._buffer[:size]
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self._tally.failed += 1
            self.over.set_result(None)

    def _greet(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end >= 0:
            assert self._buffer.startswith(b"HTTP/1.1 101"), bytes(self._buffer[:200])
            del self._buffer[: end + 4]
            self.ready.set_result(None)

    def _ask(self) -> None:
        now = time.perf_counter()
        if now >= self._until:
            self.over.set_result(None)
            self._transport.close()
            return
        self._since = now
        self._transport.write(self._question.asked)

    def _count(self, answer: bytes) -> None:
        tally = self._tally
        if not answer.startswith(b"HTTP") or answer.startswith(b"HTTP/1.1 200"):
            tally.times.append((time.perf_counter() - self._since) * 1e3)
        elif answer.startswith(b"HTTP/1.1 503") and b"retry-after:" in answer.lower():
            tally.refused += 1
        else:
            tally.failed += 1


async def load(question: Question, clients: int, seconds: float) -> Tally:
    """So many clients for so long."""
    tally, loop = Tally(), asyncio.get_running_loop()
    async with asyncio.timeout(seconds + 2 * PATIENCE):
        pairs = [
            await loop.create_connection(lambda: _Client(question, tally), "127.0.0.1", question.port)
            for _ in range(clients)
        ]
        made = [client for _, client in pairs]
        await asyncio.gather(*(client.ready for client in made))
        start = time.perf_counter()
        for client in made:
            client.begin(start + seconds)
        await asyncio.gather(*(client.over for client in made))
    tally.seconds = time.perf_counter() - start
    return tally


def post(path: str, body: bytes, port: int, **headers: str) -> bytes:
    """A request with a body in JSON."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def upgrade(path: str, port: int) -> bytes:
    """The handshake of a WebSocket."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def text_frame(text: bytes) -> bytes:
    """A masked text frame of at most 65 535 bytes (RFC 6455)."""
    mask = os.urandom(4)
    size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
    return b"\x81" + size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))


def whole(buffer: bytearray) -> int:
    """An HTTP answer with a Content-Length."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = bytes(buffer[:end]).lower()
    at = head.index(b"content-length:") + 15
    size = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
    return size if len(buffer) >= size else 0


def chunked(buffer: bytearray) -> int:
    """A chunked HTTP answer, such as server-sent events, or a whole one where it was refused."""
    if b"transfer-encoding: chunked" not in buffer[:1024].lower():
        return whole(buffer)
    end = buffer.find(b"\r\n0\r\n\r\n")
    return end + 7 if end >= 0 else 0


def frames(buffer: bytearray) -> int:
    """WebSocket frames up to the one that completes a stream."""
    at = 0
    while len(buffer) >= at + 2:
        size, start = buffer[at + 1] & 127, at + 2
        if size == 126:
            size, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
        if len(buffer) < start + size:
            return 0
        at = start + size
        if b'"completed"' in buffer[start:at]:
            return at
    return 0
