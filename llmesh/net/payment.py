"""/llmesh/payment/1.0.0 on a session: one call is one question about money and its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import trio

from llmesh.core.channel import Sync
from llmesh.core.inference import Consumer
from llmesh.core.payment import Answer, Confirm, Confirmed, Question, Reconcile
from llmesh.errors import ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.wire.payment import decode_answer, decode_question, encode_answer, encode_question

__all__ = ["PROTOCOL", "Serve", "confirm", "handler", "reconcile"]

PROTOCOL = "/llmesh/payment/1.0.0"

Serve: TypeAlias = Callable[[Question, Consumer], Awaitable[Answer]]
"""Answers a question of a peer."""

_A = TypeVar("_A", Confirmed, Sync)


async def confirm(session: Session, question: Confirm, timeout: float) -> Confirmed:
    """Ask whether an offer holds and there is room; nothing in the answer is verified.

    `timeout` (seconds) is told to the peer; the caller's own scope bounds the wait.  Raises what the peer
    refuses with (`remote` is set), NetworkError when the session is lost, ValidationFailed with `peer_id`
    for an answer that is none.
    """
    return _expect(await _ask(session, question, timeout), Confirmed, session)


async def reconcile(session: Session, question: Reconcile, timeout: float) -> Sync:
    """Tell the payer's end of a channel and get the provider's; raises as `confirm`."""
    return _expect(await _ask(session, question, timeout), Sync, session)


def handler(serve: Serve) -> Handler:
    """What answers the calls of this protocol."""

    async def reply(call: Call, message: bytes) -> None:
        answer = await serve(decode_question(message), Consumer(call.peer_id, call.session))
        await call.send(encode_answer(answer))

    return reply


async def _ask(session: Session, question: Question, timeout: float) -> Answer:
    async with session.call(PROTOCOL, encode_question(question), timeout=timeout) as call:
        try:
            return decode_answer(await call.receive())
        except trio.EndOfChannel:
            raise ValidationFailed("The peer gave no answer about payment.", peer_id=call.peer_id) from None
        except ValidationFailed as error:
            if error.remote:
                raise
            raise ValidationFailed(error.message, peer_id=call.peer_id) from None


def _expect(answer: Answer, kind: type[_A], session: Session) -> _A:
    if not isinstance(answer, kind):
        raise ValidationFailed("The peer answered another question about payment.", peer_id=session.peer_id)
    return answer
