"""Run: one request under way, and what the failure of one attempt means for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import trio

from llmesh.core.digest import values_digest
from llmesh.core.exchange import Accepted
from llmesh.core.ids import PeerId
from llmesh.core.inference import Chunk, InferenceRequest, Result, Skipped
from llmesh.core.ranking import Candidate
from llmesh.core.verdict import Failure, named_once, tried
from llmesh.errors import (
    InsufficientBalance,
    MeshError,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
    TransactionFailed,
)
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.payments import out_of_step

__all__ = ["Run", "Show", "Streamed", "once_more", "told", "too_late", "unpaid"]

Streamed: TypeAlias = Accepted | Chunk | Result
"""What a stream gives: Accepted for each attempt that a provider took up, chunks, the Result last."""

Show: TypeAlias = Callable[[Accepted | Chunk], Awaitable[None]]


@dataclass
class Run:
    """One request under way: who was passed over, what was tried, how far the present attempt is."""

    request: InferenceRequest
    started: float
    show: Show | None
    purse: DurablePurse | None = None
    excluded: tuple[Skipped, ...] = ()
    failures: list[Failure] = field(default_factory=list)
    asked: Candidate | None = None
    asked_at: float = 0.0
    accepted: bool = False
    shown: bool = False
    attempts: int = 0
    agreed: set[PeerId] = field(default_factory=set)
    full: set[PeerId] = field(default_factory=set)

    @cached_property
    def input_digest(self) -> bytes:
        """What receipts call the input."""
        return values_digest(self.request.input)

    @property
    def deadline(self) -> float:
        """By trio's clock."""
        return self.started + self.request.timeout

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Who was passed over, and who has failed so far."""
        failed = (Skipped(peer, error.code, error.message) for peer, error in self.failures)
        return (*self.excluded, *failed)

    async def pass_on(self, event: Accepted | Chunk) -> None:
        """To whoever watches; what a watcher has seen of an answer cannot be taken back."""
        if self.show is not None:
            self.shown = self.shown or isinstance(event, Chunk)
            await self.show(event)


# An attempt's time is told in whole milliseconds and counts from when the peer gets it.
_CLOCK_SLACK = 0.1


def once_more(error: MeshError, run: Run, candidate: Candidate, left: deque[Candidate]) -> bool:
    """Whether a provider is to be asked once more: once both ends agree, or after those with room."""
    peer = candidate.peer_id
    if not candidate.fee:
        return False
    if isinstance(error, NodeBusy) and not error.remote and peer not in run.full:
        run.full.add(peer)
        run.attempts -= 1  # nothing was sent
        left.append(candidate)
        return True
    if out_of_step(error) and peer not in run.agreed:
        run.agreed.add(peer)
        left.appendleft(candidate)
        return True
    return False


def unpaid(error: MeshError) -> bool:
    """Whether it is this node that cannot pay: others may cost nothing, or have its deposit already."""
    return isinstance(error, InsufficientBalance | TransactionFailed) and not error.remote


def too_late(run: Run) -> RequestTimeout:
    """The error for a request whose time has passed."""
    return RequestTimeout(f"There was no answer within {run.request.timeout:g} s{tried(run.failures)}.")


def told(error: MeshError, run: Run, candidate: Candidate) -> MeshError:
    """The failure of an attempt as the caller gets it.

    A peer that says the time is over while it is not has only given up; one that refuses to be paid, by
    its view of the channel, is no reason to ask nobody else.
    """
    peer = candidate.peer_id
    if out_of_step(error) and candidate.fee:
        return NetworkError(f"{peer} does not take this node's payment: {error.message}", peer_id=peer)
    if isinstance(error, NetworkError | NodeUnreachable) and not error.remote:
        return type(error)(named_once(error.message, peer), peer_id=peer)
    left = run.deadline - trio.current_time()
    if isinstance(error, RequestTimeout) and error.remote and left > _CLOCK_SLACK:
        return NetworkError(
            f"The provider gave up {left:.1f} s before the time was over.", peer_id=error.peer_id
        )
    return error
