"""A request of the gateway: Quart's, with an id of our own, and how its body is read."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from functools import cached_property
from ipaddress import ip_address

import trio
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from llmesh.core.ids import RequestId
from llmesh.gateway.body import Body, unpacked
from llmesh.gateway.callers import OWNER, Caller

__all__ = ["Request", "new_request_id"]


SLOWEST = 64 * 1024
"""Bytes of a large body that must come in each `body_timeout` seconds."""


def new_request_id() -> RequestId:
    """A name that no other request has."""
    return RequestId(secrets.token_hex(16))


class Request(TrioRequest):
    """One HTTP request; its `caller` is known once it has passed the gate.

    `readmit` looks again, for an answer that takes long: it raises Unauthorized once the key is void.
    """

    caller: Caller
    readmit: Callable[[], Caller]
    blueprints = ()  # type: ignore[assignment]  # there are none, and Quart asks thrice a request

    body_class = Body  # type: ignore[assignment]  # has what Quart asks of it
    body: Body  # type: ignore[assignment]
    _whole: bytes | None = None

    @cached_property
    def id(self) -> RequestId:
        """Names this request in answers, errors, logs and on the mesh."""
        return new_request_id()

    async def json_bytes(self) -> bytes:
        """The body, unparsed.

        Raises UnsupportedMediaType unless it is said to be JSON, RequestEntityTooLarge as soon as it
        is known to be over the limit, RequestTimeout (all werkzeug's) if it is slow to come, and
        what `unpacked` does.
        """
        if self.mimetype != "application/json":
            raise UnsupportedMediaType("The body must be sent with Content-Type: application/json.")
        return await self.bounded_bytes()

    async def bounded_bytes(self) -> bytes:
        """`json_bytes`, whatever the body is said to be."""
        if self._whole is None:
            encoding = self.headers.get("Content-Encoding", "identity").lower()
            self._whole = unpacked(await self._read(), encoding, self.max_content_length or 0)
        return self._whole

    async def _read(self) -> bytes:
        most = self.max_content_length or 0
        if (self.content_length or 0) > most:
            raise _too_large(most)
        data = bytearray()
        with trio.move_on_after(self.body_timeout or 0):
            while piece := await self.body.take():
                data += piece
                if len(data) > most:
                    raise _too_large(most)
            return bytes(data)
        raise RequestTimeout

    async def pieces(self) -> AsyncGenerator[bytes]:
        """A body of any size as it comes, held back while nobody takes it.

        Raises RequestTimeout where less than SLOWEST bytes come within the body's time.
        """
        patience = self.body_timeout or 0
        due, came = trio.current_time() + patience, 0
        while True:
            with trio.move_on_at(due) as waiting:
                piece = await self.body.take()
            if waiting.cancelled_caught:
                raise RequestTimeout
            if not piece:
                return
            came += len(piece)
            yield piece
            if came >= SLOWEST:
                due, came = trio.current_time() + patience, 0

    @property
    def stopping(self) -> trio.Event:
        """Set when the server stops."""
        stopping: trio.Event = self.scope["state"]["stopping"]
        return stopping

    @property
    def caller_name(self) -> str:
        """Whose request it is: one caller's names mean nothing to another."""
        return self.caller.name

    def variable(self, name: str) -> str:
        """A variable of the route's path."""
        return str((self.view_args or {})[name])

    @property
    def is_local(self) -> bool:
        """Whether a program of this machine sent it, and no proxy for somebody else."""
        if self.caller is OWNER:
            return True  # by the owner's socket
        host = (self.scope.get("client") or ("", 0))[0]
        forwarded = any(name in self.headers for name in _FORWARDED)
        return not forwarded and _is_loopback(host)


def _too_large(most: int) -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"The body is larger than the {most} bytes that this node takes.")


_FORWARDED = ("Forwarded", "X-Forwarded-For", "Via")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
