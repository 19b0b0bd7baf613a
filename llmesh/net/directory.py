"""/llmesh/directory/1.0.0 on a session: one call is one query and its answers.

Moves messages only: what to ask and what to answer is decided in core, what to believe too.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeAlias

import trio

from llmesh.core.ids import PeerId
from llmesh.core.query import Answer, Query
from llmesh.errors import MeshError, ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.wire.directory import decode_answer, decode_query, encode_answer, encode_query

__all__ = ["PROTOCOL", "Serve", "ask", "handler", "lenient", "tell"]

log = logging.getLogger(__name__)

PROTOCOL = "/llmesh/directory/1.0.0"

Serve: TypeAlias = Callable[[Query, PeerId], Awaitable[Iterable[Answer]]]
"""Serves a peer's query; the answers are made one by one as the peer takes them."""


@asynccontextmanager
async def ask(session: Session, query: Query, timeout: float) -> AsyncGenerator[AsyncIterator[Answer]]:
    """Send a query; the block gets the answers as they come and may leave at any of them.

    `timeout` (seconds) is told to the peer; a mute peer is bounded by the caller's own scope.  Raises
    what the peer failed with (`remote` is set), NetworkError when the session is lost, and
    ValidationFailed with `peer_id` for an answer that is not one.
    """
    async with (
        session.call(PROTOCOL, encode_query(query), timeout=timeout) as call,
        aclosing(_answers(call)) as answers,
    ):
        yield answers


async def tell(session: Session, query: Query, timeout: float) -> None:
    """Send a query that has no answer and wait until the peer has dealt with it; raises as `ask`."""
    async with ask(session, query, timeout) as answers:
        async for _ in answers:
            pass


@contextmanager
def lenient(peer: PeerId, seconds: float) -> Iterator[trio.CancelScope]:
    """A conversation that may fail or take too long: either ends it and is no more than a line in the log."""
    with trio.move_on_after(seconds) as scope:
        try:
            yield scope
        except MeshError as error:
            log.debug("directory of %s: %s", peer, error.message)


def handler(serve: Serve) -> Handler:
    """What answers the calls of this protocol."""

    async def reply(call: Call, message: bytes) -> None:
        for answer in await serve(decode_query(message), call.peer_id):
            await call.send(encode_answer(answer))

    return reply


async def _answers(call: Call) -> AsyncGenerator[Answer]:
    while True:
        try:
            yield decode_answer(await call.receive())
        except trio.EndOfChannel:
            return
        except ValidationFailed as error:
            if error.remote:
                raise
            raise ValidationFailed(error.message, peer_id=call.peer_id) from None
