"""/llmesh/reach/1.0.0 on a session: ask a peer to dial us back, and be asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError
from llmesh.net.call import Call, Handler
from llmesh.net.session import Session
from llmesh.wire.reachability import decode_ask, decode_told, encode_ask, encode_told

__all__ = ["PROTOCOL", "DialBack", "ask_dial_back", "handler"]

PROTOCOL = "/llmesh/reach/1.0.0"
ASK_SECONDS = 15.0

DialBack: TypeAlias = Callable[[PeerId, Sequence[str]], Awaitable[Sequence[str]]]
"""Tries the addresses that a peer gave and returns those at which it answered; may raise MeshError."""


async def ask_dial_back(session: Session, addresses: Sequence[str]) -> tuple[str, ...]:
    """Which of our addresses the peer reached us at.  Raises MeshError; cancelling gives the call up."""
    async with session.call(PROTOCOL, encode_ask(addresses), timeout=ASK_SECONDS) as call:
        try:
            told = decode_told(await call.receive())
        except trio.EndOfChannel:
            raise NetworkError("The peer ended the call without an answer.", peer_id=call.peer_id) from None
    return tuple(address for address in addresses if address in told)


def handler(dial_back: DialBack) -> Handler:
    """What answers the calls of this protocol."""

    async def answer(call: Call, message: bytes) -> None:
        reached = await dial_back(call.peer_id, decode_ask(message))
        await call.send(encode_told(reached))

    return answer
