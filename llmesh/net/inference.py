"""/llmesh/inference/1.0.0 on a session: one call is one attempt at one inference.

Moves messages between a call and `core.exchange`; it decides nothing.  `handler` takes the very
function by which a node serves itself, so that both ways of being served are one.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TypeAlias

import trio

from llmesh.core.exchange import Completed, Event, Exchange, Failed, Request, Role
from llmesh.core.ids import PeerId
from llmesh.core.inference import Attempt, Consumer
from llmesh.errors import MeshError, ModelFailed, TooLarge, ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.wire.inference import decode_event, decode_request, encode_event, encode_request

__all__ = ["MAX_ANSWER", "PROTOCOL", "Serve", "ask", "handler"]

PROTOCOL = "/llmesh/inference/1.0.0"
MAX_ANSWER = 64 << 20
"""The most bytes that the chunks of one answer may take together."""

Serve: TypeAlias = Callable[[Attempt, Consumer], AbstractAsyncContextManager[AsyncIterator[Event]]]
"""Serves an attempt of a consumer; leaving the block early stops the work."""


@asynccontextmanager
async def ask(session: Session, attempt: Attempt) -> AsyncGenerator[AsyncIterator[Event]]:
    """Send an attempt to a peer; the block gets Accepted, chunks, Completed, in this order.

    Leaving the block early, or being cancelled, cancels the attempt at the provider.  Raises what
    the provider failed with (`remote` is set), NetworkError when the session is lost, and
    ValidationFailed with `peer_id` for an answer that breaks the protocol or the quote.
    """
    exchange = Exchange(Role.CONSUMER, session.peer_id)
    exchange.send(Request(attempt))
    request = encode_request(attempt)
    async with (
        session.call(PROTOCOL, request, timeout=attempt.timeout) as call,
        aclosing(_events(call, exchange)) as events,
    ):
        yield events


def handler(serve: Serve) -> Handler:
    """What answers the calls of this protocol: each is served by `serve` and ends with it."""

    async def answer(call: Call, message: bytes) -> None:
        timeout = math.inf if call.timeout is None else call.timeout
        attempt = decode_request(message, timeout)
        exchange = Exchange(Role.PROVIDER, call.peer_id)
        exchange.receive(Request(attempt))
        async with serve(attempt, Consumer(call.peer_id, call.session)) as events:
            async for event in events:
                exchange.send(event)
                await call.send(_encode(event))

    return answer


async def _events(call: Call, exchange: Exchange) -> AsyncGenerator[Event]:
    left = MAX_ANSWER
    while True:
        data = await _receive(call, exchange)
        left -= len(data)
        event = _decode(data, call.peer_id)
        if left < 0:
            raise ValidationFailed(f"The answer is over {MAX_ANSWER} bytes.", peer_id=call.peer_id)
        exchange.receive(event)
        yield event
        if isinstance(event, Completed):
            return


async def _receive(call: Call, exchange: Exchange) -> bytes:
    try:
        return await call.receive()
    except trio.EndOfChannel:
        raise ValidationFailed(
            "The provider ended the call before the answer.", peer_id=call.peer_id
        ) from None
    except TooLarge as error:
        if error.remote:
            raise
        raise ValidationFailed(error.message, peer_id=call.peer_id) from None
    except MeshError as error:
        exchange.receive(Failed(error))
        raise


def _decode(data: bytes, peer: PeerId) -> Event:
    try:
        return decode_event(data)
    except ValidationFailed as error:
        raise ValidationFailed(error.message, peer_id=peer) from None


def _encode(event: Event) -> bytes:
    # What a model made and JSON cannot say (NaN) is the model's failure, not the consumer's.
    try:
        return encode_event(event)
    except ValidationFailed as error:
        raise ModelFailed(f"The model's answer is no answer: {error.message}") from None
