"""A WebSocket of one gateway: JSON frames out, JSON frames in.

It is the protocol (wsproto) over a connection of the HTTP client, without tasks of its own, so that an
async generator may hold it: pings of the node are answered while a frame is awaited.
"""

from __future__ import annotations

import base64
import json
import secrets
from contextlib import suppress
from typing import Any

import anyio
import httpcore2
import httpx2
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, generate_accept_token

from llmesh.errors import NetworkError

__all__ = ["Socket", "handshake", "is_answered"]

SILENCE = 60.0
"""Seconds without a sign of life after which the connection counts as lost; the node pings every 20."""
MAX_FRAME = 128 << 20
"""Characters of one frame of the node; an output may be large."""
_CLOSING = 1.0
_READ = 65536


def handshake(http: httpx2.AsyncClient, path: str) -> httpx2.Request:
    """The request that opens a WebSocket (RFC 6455, 4.1)."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    return http.build_request("GET", path, headers=headers)


def is_answered(answer: httpx2.Response) -> bool:
    """Whether the answer to a handshake is a WebSocket."""
    accepted = generate_accept_token(answer.request.headers["Sec-WebSocket-Key"].encode()).decode()
    return answer.status_code == 101 and answer.headers.get("Sec-WebSocket-Accept") == accepted


class Socket:
    """Made of the answer to a handshake, which it closes in the end; for one task at a time."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self._stream = answer.extensions["network_stream"]
        self._protocol = Connection(ConnectionType.CLIENT)

    async def send(self, frame: bytes) -> None:
        """Send one JSON text.  Raises NetworkError."""
        await self._write(self._protocol.send(TextMessage(frame.decode())))

    async def receive(self) -> dict[str, Any]:
        """The next frame.  Raises NetworkError when the connection is closed, lost, or silent for long."""
        parts: list[str] = []
        size = 0
        while True:
            for event in self._protocol.events():
                match event:
                    case Ping():
                        await self._write(self._protocol.send(event.response()))
                    case CloseConnection():
                        raise NetworkError(f"The node closed the socket: {event.reason or event.code}.")
                    case Message(data=str(part)):
                        parts.append(part)
                        size += len(part)
                        if event.message_finished:
                            return _frame("".join(parts))
            if size > MAX_FRAME:
                raise NetworkError(f"The node sent a frame over {MAX_FRAME} characters.")
            self._protocol.receive_data(await self._read())

    async def aclose(self) -> None:
        """Say goodbye, for a second at most, and close the connection, whatever is cancelled."""
        with anyio.move_on_after(_CLOSING, shield=True):
            with suppress(NetworkError, LocalProtocolError):
                await self._write(self._protocol.send(CloseConnection(1000)))
        with anyio.move_on_after(_CLOSING, shield=True):
            await self._answer.aclose()

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.write(data, timeout=SILENCE)
        except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            raise _lost(error) from None

    async def _read(self) -> bytes | None:
        """What has come; None once nothing more can."""
        try:
            return await self._stream.read(_READ, timeout=SILENCE) or None
        except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            raise _lost(error) from None


def _lost(error: Exception) -> NetworkError:
    return NetworkError(f"The connection to the node broke: {str(error) or type(error).__name__}.")


def _frame(text: str) -> dict[str, Any]:
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        frame = None
    if not isinstance(frame, dict):
        raise NetworkError(f"This is no frame of a node: {text[:120]!r}.")
    return frame
