"""Idempotency-Key: what is sent twice under one key is done once (draft-ietf-httpapi-idempotency-key-header).

The same key with the same request gives the first one's answer again, also while the first still
runs: then it is waited for.  The same key with another request is a Conflict.  A request that failed
leaves its key free, because nothing was done and a retry should have its chance; one that was
cancelled hands over to whoever waits.

Answers are kept in memory for a day.  What must outlast that, and a restart, is that nothing is paid
twice, and this the id of the request sees to: it is made from the caller, the key and the request
itself, so a retry goes to the provider that was paid for it, which answers with the receipt and the
output that it stored.  Only where it is gone, or has not kept the output, is another one paid.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import trio
from quart import Response
from werkzeug.datastructures import Headers

from llmesh.core.ids import RequestId, keyed_id
from llmesh.errors import Conflict, MeshError, NodeBusy, ValidationFailed
from llmesh.gateway.request import Request

__all__ = ["HEADER", "IDEMPOTENCY_KEY", "Idempotency", "keyed", "refuse_key"]

HEADER = "Idempotency-Key"
IDEMPOTENCY_KEY = {
    HEADER: {
        "type": "string",
        "pattern": "^[\\x21-\\x7e]{1,255}$",
        "description": "Sent again with the same request, it gives the same answer and does nothing.",
    }
}
"""The header, for the OpenAPI document."""
KEPT = 24 * 3600.0
"""Seconds that an answer is given again."""
MOST = 10_000
"""Keys that are known at once; beyond, the oldest answers are forgotten."""
MOST_BYTES = 64 << 20
"""Bytes of all kept answers; beyond, the oldest are forgotten."""

_MEANT = ("Content-Type", "Inference-Header-Content-Length")
"""Headers that say what a body means."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
_View: TypeAlias = Callable[[Request], Awaitable[Response]]
_Name: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    headers: Headers

    def respond(self) -> Response:
        response = Response(self.body, self.status, headers=self.headers.copy())
        response.headers["Idempotency-Replayed"] = "true"
        return response


@dataclass(slots=True)
class _Entry:
    """One key: under way until `over`, then with an answer or, for those who waited, a failure."""

    fingerprint: bytes
    expires: float
    over: trio.Event = field(default_factory=trio.Event)
    answer: _Answer | None = None
    failure: MeshError | None = None


class Idempotency:
    """The keys of one route; those of one caller are nothing to another."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._bytes = 0

    async def once(
        self, request: Request, fingerprint: bytes, run: Callable[[], Awaitable[Response]]
    ) -> Response:
        """What `run` answers, run at most once for the request's key; without a key it is just run.

        Raises Conflict where the key came with another fingerprint, ValidationFailed for a bad key,
        NodeBusy while all keys that may be known are under way, and what `run` raises.
        """
        key = _key(request)
        if key is None:
            return await run()
        name = (request.caller_name, key)
        request.id = _derived(request, key, fingerprint)
        while (entry := self._known(name)) is not None:
            if entry.fingerprint != fingerprint:
                raise Conflict("This Idempotency-Key came before with another request; use a new one.")
            await entry.over.wait()
            if entry.failure is not None:
                raise entry.failure
            if entry.answer is not None:
                return entry.answer.respond()
        return await self._first(name, fingerprint, run)

    async def _first(
        self, name: _Name, fingerprint: bytes, run: Callable[[], Awaitable[Response]]
    ) -> Response:
        self._make_room()
        entry = self._entries[name] = _Entry(fingerprint, trio.current_time() + KEPT)
        try:
            response = await run()
            body = await response.get_data(as_text=False)
            entry.answer = _Answer(response.status_code, body, response.headers.copy())
            self._bytes += len(body)
            return response
        except MeshError as error:
            entry.failure = error
            raise
        finally:
            entry.over.set()
            if entry.answer is None:
                del self._entries[name]

    def _known(self, name: _Name) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is not None and entry.over.is_set() and entry.expires <= trio.current_time():
            self._forget(name)
            return None
        return entry

    def _make_room(self) -> None:
        """Forget the oldest answers; what is under way is never forgotten."""
        now = trio.current_time()
        for name, entry in list(self._entries.items()):
            full = len(self._entries) >= MOST or self._bytes > MOST_BYTES
            if not full and entry.expires > now:
                return
            if entry.over.is_set():
                self._forget(name)
        if len(self._entries) >= MOST:
            raise NodeBusy("Too many requests with an Idempotency-Key are under way.", retry_after=1.0)

    def _forget(self, name: _Name) -> None:
        answer = self._entries.pop(name).answer
        self._bytes -= len(answer.body) if answer is not None else 0


def keyed(view: _View) -> _View:
    """A view whose requests are done once for each Idempotency-Key; its answers must be whole, no streams."""
    idempotency = Idempotency()

    async def once(request: Request) -> Response:
        if HEADER not in request.headers:
            return await view(request)
        digest = hashlib.blake2b(await request.bounded_bytes())
        for said in (request.path, *(request.headers.get(name, "") for name in _MEANT)):
            digest.update(f"\n{said}".encode())
        return await idempotency.once(request, digest.digest(), partial(view, request))

    return once


def refuse_key(request: Request) -> None:
    """For an answer that streams, which is not kept.  Raises ValidationFailed where a key came with it."""
    if HEADER in request.headers:
        raise ValidationFailed(f"An answer that streams is not kept, so it takes no {HEADER}.")


def _key(request: Request) -> str | None:
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    if len(keys) > 1:
        raise ValidationFailed("The request has several Idempotency-Keys; send one.")
    if not _KEY.match(keys[0]):
        raise ValidationFailed("An Idempotency-Key is one word of 1 to 255 printable ASCII characters.")
    return keys[0]


def _derived(request: Request, key: str, fingerprint: bytes) -> RequestId:
    """The id of this request however often it is sent, in this life of the node or a later one."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (request.caller_name, request.method, request.path, key):
        digest.update(f"{len(part)}:{part}".encode())
    digest.update(fingerprint)
    return keyed_id(digest.digest())
