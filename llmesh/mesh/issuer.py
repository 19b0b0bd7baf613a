"""Issuing: gives a swarm's log to whoever asks, and enters operations where this node is the issuer.

Any member may give the log, since it proves itself; only the issuer's node enters, and says by a
binding of its two keys that it is the one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeAlias

import trio

from llmesh.core.binding import SignedBinding
from llmesh.core.ids import PeerId
from llmesh.core.ledgerlog import SignedEntry
from llmesh.core.operations import SignedOperation
from llmesh.core.peering import Pace
from llmesh.core.swarm import Answer, AskGenesis, Entered, Follow, Introduction, Question, Submit
from llmesh.errors import Conflict, NodeBusy, ValidationFailed
from llmesh.ledger.log import LogLedger

__all__ = ["Bind", "Issuing"]

BATCH = 64
"""Entries read from the disk at a time."""
FOLLOWERS = 256
PER_PEER = 4
"""Followers at a time, of all peers and of one."""

Bind: TypeAlias = Callable[[], SignedBinding]
"""This node's two keys, bound anew."""


class Issuing:
    """Answers questions about `log`; `bind` is called where this node is its issuer."""

    def __init__(self, log: LogLedger, bind: Bind) -> None:
        self._log = log
        self._bind = bind
        self._pace = Pace(50, 0.2)
        self._followers: Counter[PeerId] = Counter()

    @asynccontextmanager
    async def serve(self, question: Question, peer: PeerId) -> AsyncGenerator[AsyncIterator[Answer]]:
        """The answers to a peer's question.

        Raises ValidationFailed for another swarm's ledger, Conflict for a log longer than this one or
        an operation that this node does not enter, NodeBusy for too many questions; and, for an
        operation, what `Ledger.submit` raises.
        """
        if question.swarm != self._log.genesis.hash:
            raise ValidationFailed("This node belongs to another swarm.")
        if not self._pace.take(peer, trio.current_time()):
            raise NodeBusy("You ask too often.", retry_after=1.0)
        async with aclosing(self._answers(question, peer)) as answers:
            yield answers

    async def _answers(self, question: Question, peer: PeerId) -> AsyncGenerator[Answer]:
        match question:
            case AskGenesis():
                issuer = self._bind() if self._log.issuer else None
                yield Introduction(self._log.genesis, self._log.height, issuer)
            case Submit(_, operation):
                yield await self._enter(operation)
            case Follow(_, after):
                with self._place(peer):
                    async with aclosing(self._entries(after)) as entries:
                        async for entry in entries:
                            yield entry

    async def _enter(self, operation: SignedOperation) -> Entered:
        if self._log.issuer is None:
            raise NodeBusy("This node is not the issuer of its swarm.")
        await self._log.submit(operation)
        return Entered(self._log.height)  # at this entry or one that came since

    async def _entries(self, after: int) -> AsyncGenerator[SignedEntry]:
        if after > self._log.height:
            raise Conflict(f"This node's log has {self._log.height} entries, not {after}.")
        while True:
            for entry in await self._log.entries(after, BATCH):
                yield entry
                after = entry.entry.sequence
            await self._log.after(after)

    @contextmanager
    def _place(self, peer: PeerId) -> Iterator[None]:
        if self._followers[peer] >= PER_PEER or self._followers.total() >= FOLLOWERS:
            raise NodeBusy("Too many follow this node's log.", retry_after=30.0)
        self._followers[peer] += 1
        try:
            yield
        finally:
            self._followers[peer] -= 1
            if not self._followers[peer]:
                del self._followers[peer]
