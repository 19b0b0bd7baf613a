"""/llmesh/ledger/1.0.0 on a session: one call is one question about a swarm's ledger and its answers.

Moves messages only: what is genuine is decided in core, whom to ask in mesh.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TypeAlias, TypeVar

import trio

from llmesh.core.ids import PeerId
from llmesh.core.ledgerlog import SignedEntry
from llmesh.core.operations import SignedOperation
from llmesh.core.swarm import Answer, AskGenesis, Entered, Follow, Introduction, Question, Submit
from llmesh.errors import NetworkError, ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.wire.ledger import decode_answer, decode_question, encode_answer, encode_question

__all__ = ["PROTOCOL", "Serve", "ask_genesis", "follow", "handler", "submit"]

PROTOCOL = "/llmesh/ledger/1.0.0"
ASKING = 10.0
"""Seconds that a peer is given for an answer."""

Serve: TypeAlias = Callable[[Question, PeerId], AbstractAsyncContextManager[AsyncIterator[Answer]]]
"""Opens the answers to a peer's question; the block lasts as long as the peer takes them."""

_A = TypeVar("_A", Introduction, Entered, SignedEntry)


async def ask_genesis(session: Session, swarm: bytes) -> Introduction:
    """How the swarm of that name began, if the peer is of it; not checked against the name.

    Raises what the peer failed with (`remote` is set), NetworkError when the session is lost,
    ValidationFailed with `peer_id` for an answer that is none.
    """
    return await _ask(session, AskGenesis(swarm), Introduction)


async def submit(session: Session, swarm: bytes, operation: SignedOperation) -> int:
    """Have the issuer enter an operation; it is among that many entries.  Raises as `ask_genesis`.

    Where an error comes from here and not from the peer, the operation may have been entered.
    """
    return (await _ask(session, Submit(swarm, operation), Entered)).sequence


@asynccontextmanager
async def follow(session: Session, swarm: bytes, after: int) -> AsyncGenerator[AsyncIterator[SignedEntry]]:
    """The block gets the entries above a number, each as it comes, for as long as it stays.

    They are not checked.  Raises as `ask_genesis`; the entries end where the peer ends them.
    """
    async with (
        session.call(PROTOCOL, encode_question(Follow(swarm, after))) as call,
        aclosing(_entries(call)) as entries,
    ):
        yield entries


def handler(serve: Serve) -> Handler:
    """What answers the calls of this protocol."""

    async def reply(call: Call, message: bytes) -> None:
        async with serve(decode_question(message), call.peer_id) as answers:
            async for answer in answers:
                await call.send(encode_answer(answer))

    return reply


async def _entries(call: Call) -> AsyncGenerator[SignedEntry]:
    while True:
        try:
            message = await call.receive()
        except trio.EndOfChannel:
            return
        yield _read(call, message, SignedEntry)


async def _ask(session: Session, question: Question, kind: type[_A]) -> _A:
    async with session.call(PROTOCOL, encode_question(question), timeout=ASKING) as call:
        try:
            return _read(call, await call.receive(), kind)
        except trio.EndOfChannel:
            raise NetworkError("The peer ended the call without an answer.", peer_id=call.peer_id) from None


def _read(call: Call, message: bytes, kind: type[_A]) -> _A:
    try:
        answer = decode_answer(message)
    except ValidationFailed as error:
        raise ValidationFailed(error.message, peer_id=call.peer_id) from None
    if not isinstance(answer, kind):
        raise ValidationFailed("The peer answered another question.", peer_id=call.peer_id)
    return answer
