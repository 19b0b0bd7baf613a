"""/llmesh/artifact/1.0.0 on a session: one call is one peer as a source of one model's files.

Moves manifests and blocks; which block is wanted next, what is right and where it is kept is decided
above.  Nothing here touches a disk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

import trio

from llmesh.core.frames import MAX_PAYLOAD
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import Block, Manifest, check_manifest
from llmesh.errors import NetworkError, RequestTimeout, ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.net.throttle import Throttle
from llmesh.wire.artifact import (
    MAX_MANIFEST,
    decode_fetch,
    decode_manifest,
    decode_want,
    encode_fetch,
    encode_manifest,
    encode_want,
)  # fmt: skip

__all__ = ["PROTOCOL", "Replica", "Serve", "Source", "handler", "open_source"]

PROTOCOL = "/llmesh/artifact/1.0.0"

PIECE = MAX_PAYLOAD
"""Bytes of each message of a manifest or block but the last, which has fewer."""

SILENCE = 30.0
"""Seconds without a piece after which a source is given up."""

IDLE = 60.0
"""Seconds after which a handler gives up a peer that takes nothing or asks for nothing."""


class Replica(Protocol):
    """A model's files as they can be given away."""

    manifest: Manifest

    async def read(self, block: Block) -> bytes:
        """The bytes of a block.  Raises ValidationFailed where there is none, ModelNotFound if gone."""


Serve: TypeAlias = Callable[[ModelId, PeerId], AbstractAsyncContextManager[Replica]]
"""Opens a model for a peer; the block lasts as long as the call.  Raises ModelNotFound, NodeBusy."""


class Source:
    """A peer that gives a model's files, and the manifest that it gave; made by `open_source`.

    `heard_at` is when the last piece of a block came, by trio's clock.
    """

    def __init__(self, call: Call, throttle: Throttle, manifest: Manifest) -> None:
        self.peer_id = call.peer_id
        self.manifest = manifest
        self.heard_at = -math.inf
        self._call = call
        self._throttle = throttle
        self._owed: deque[tuple[Block, int]] = deque()

    @property
    def owes(self) -> int:
        """Blocks that were asked for and have not been received."""
        return len(self._owed)

    async def ask(self, block: Block, size: int) -> None:
        """Ask for a block of that many bytes; several may be on their way at a time."""
        await self._call.send(encode_want(block))
        self._owed.append((block, size))

    async def receive(self) -> tuple[Block, bytes]:
        """The next block that was asked for, and what came for it: at most its size, not verified.

        Raises what the peer failed with (`remote` is set), NetworkError when the session is lost or
        nothing came for 30 s, ValidationFailed with `peer_id` for more bytes than the block has.
        Cancelled, it leaves the call useless.
        """
        block, size = self._owed[0]
        data = await _receive(self._call, self._throttle, size, self._heard)
        self._owed.popleft()
        return block, data

    def _heard(self) -> None:
        self.heard_at = trio.current_time()


@asynccontextmanager
async def open_source(session: Session, model: ModelId, throttle: Throttle) -> AsyncGenerator[Source]:
    """Open a peer as a source of a model; leaving stops whatever it still sends.

    Raises what `Source.receive` does, ValidationFailed with `peer_id` for a manifest that is not of this
    model, TooLarge for a model of more than 64 GiB.
    """
    async with session.call(PROTOCOL, encode_fetch(model)) as call:
        data = await _receive(call, throttle, MAX_MANIFEST, _nothing)
        try:
            manifest = decode_manifest(data)
            check_manifest(manifest, model)
        except ValidationFailed as error:
            raise ValidationFailed(error.message, peer_id=call.peer_id) from None
        yield Source(call, throttle, manifest)


def handler(serve: Serve, throttle: Throttle) -> Handler:
    """What answers the calls of this protocol."""

    async def give(call: Call, message: bytes) -> None:
        async with serve(decode_fetch(message), call.peer_id) as replica:
            await _send(call, throttle, encode_manifest(replica.manifest))
            while (wanted := await _wanted(call)) is not None:
                await _send(call, throttle, await replica.read(wanted))

    return give


async def _wanted(call: Call) -> Block | None:
    with trio.move_on_after(IDLE):
        try:
            return decode_want(await call.receive())
        except trio.EndOfChannel:
            return None
    raise RequestTimeout(f"Nothing was asked for in {IDLE:.0f} s.")


async def _send(call: Call, throttle: Throttle, data: bytes) -> None:
    """All of it in pieces; the last is shorter than a piece."""
    whole = memoryview(data)
    with trio.move_on_after(IDLE) as scope:
        for start in range(0, len(data) + 1, PIECE):
            piece = whole[start : start + PIECE]
            await _throttled(throttle, len(piece), scope)
            _renew(scope, IDLE)
            await call.send(piece)
        return
    raise RequestTimeout(f"Nothing was taken in {IDLE:.0f} s.")


async def _receive(call: Call, throttle: Throttle, limit: int, heard: Callable[[], None]) -> bytes:
    """What `_send` sent, at most `limit` bytes; `heard` is told of each piece."""
    pieces: list[bytes] = []
    size, last = 0, PIECE
    with trio.move_on_after(SILENCE) as scope:
        while last == PIECE:
            _renew(scope, SILENCE)
            pieces.append(await _piece(call))
            heard()
            last = len(pieces[-1])
            size += last
            if last > PIECE or size > limit:
                raise ValidationFailed(f"The peer sent more than {limit} bytes.", peer_id=call.peer_id)
            await _throttled(throttle, last, scope)
        return b"".join(pieces)
    raise NetworkError(f"The peer sent nothing for {SILENCE:.0f} s.", peer_id=call.peer_id)


async def _throttled(throttle: Throttle, size: int, scope: trio.CancelScope) -> None:
    """Wait for the throttle, which is no fault of the peer's: its deadline waits too."""
    if wait := throttle.take(size):
        scope.deadline += wait
        await trio.sleep(wait)


def _renew(scope: trio.CancelScope, seconds: float) -> None:
    """Give the next piece all its seconds, or one less: moving a deadline costs as much as a piece does."""
    deadline = trio.current_time() + seconds
    if deadline > scope.deadline + 1.0:
        scope.deadline = deadline


async def _piece(call: Call) -> bytes:
    try:
        return await call.receive()
    except trio.EndOfChannel:
        raise ValidationFailed("The peer ended the call.", peer_id=call.peer_id) from None


def _nothing() -> None:
    """Nobody listens."""
