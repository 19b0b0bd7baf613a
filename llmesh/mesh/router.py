"""Router: one request in, one answer out, whoever of the mesh gives it.

Tries the candidates one after the other under one deadline.  It chooses neither model nor order
(mesh.candidates) and moves no bytes: peers are asked through net.inference, this node's own models
through the Provider, by the same steps.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Attempt, Chunk, Consumer, InferenceRequest, Result, Skipped, output_of
from llmesh.core.ranking import Candidate, Plan
from llmesh.core.verdict import Failure, named_once, tried, verdict
from llmesh.core.wishes import Wishes
from llmesh.errors import (
    MeshError,
    ModelFailed,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
    ValidationFailed,
)
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.candidates import Candidates, Offers
from llmesh.mesh.provider import Provider
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.spending import held
from llmesh.mesh.tracing import current_trace
from llmesh.net.inference import ask
from llmesh.net.sessions import Sessions

__all__ = ["Router", "RouterSettings", "Streamed"]

STREAM_CAPACITY = 0
"""Events of a stream that wait for its reader: none, so that a slow reader holds back its provider."""

Streamed: TypeAlias = Accepted | Chunk | Result
"""What a stream gives: Accepted for each attempt that a provider took up, chunks, the Result last."""

_Show: TypeAlias = Callable[[Accepted | Chunk], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Times in seconds: for a provider to accept, for the mesh to be searched, for a whole request.

    `attempts` bounds the providers tried for one request; `wishes` are those of callers without any.
    """

    attempt_window: float = 2.0
    find_window: float = 5.0
    longest: float = 3600.0
    attempts: int = 16
    wishes: Wishes = field(default_factory=Wishes)


@dataclass(slots=True)
class _Run:
    """One request under way: who was passed over, what was tried, how far the present attempt is."""

    request: InferenceRequest
    started: float
    show: _Show | None
    purse: DurablePurse | None = None
    excluded: tuple[Skipped, ...] = ()
    failures: list[Failure] = field(default_factory=list)
    asked: Candidate | None = None
    asked_at: float = 0.0
    accepted: bool = False
    shown: bool = False

    @property
    def deadline(self) -> float:
        return self.started + self.request.timeout

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        failed = (Skipped(peer, error.code, error.message) for peer, error in self.failures)
        return (*self.excluded, *failed)

    async def pass_on(self, event: Accepted | Chunk) -> None:
        """To whoever watches; what a watcher has seen of an answer cannot be taken back."""
        if self.show is not None:
            self.shown = self.shown or isinstance(event, Chunk)
            await self.show(event)


_DEFAULT = RouterSettings()
# An attempt's time is told in whole milliseconds and counts from when the peer gets it.
_CLOCK_SLACK = 0.1


class Router:
    """Finds who answers a request; cancelling any of its calls stops the work everywhere."""

    def __init__(
        self,
        provider: Provider,
        sessions: Sessions,
        offers: Offers,
        reputation: Reputation,
        settings: RouterSettings = _DEFAULT,
    ) -> None:
        self._provider = provider
        self._sessions = sessions
        self._candidates = Candidates(provider, offers, reputation)
        self._reputation = reputation
        self._settings = settings

    async def infer(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> Result:
        """The whole answer, within the request's timeout, paid from the caller's purse if there is one.

        Raises InsufficientBalance before anything is sent, ModelNotFound, RequestTimeout,
        ValidationFailed for a bad request, or the most telling failure of the providers tried.
        Cancelling leaves nothing running, here or at a provider.
        """
        return await self._run(_Run(request, trio.current_time(), None, purse), wishes)

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        """Who would serve the request now, in order, and at what fee; nothing is run.

        Raises ModelNotFound, RequestTimeout, ValidationFailed.
        """
        run = _Run(request, trio.current_time(), None)
        with self._timed(run):
            return await self._plan(run, wishes)

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AsyncGenerator[AsyncIterator[Streamed]]:
        """The answer as it comes; the block iterates over Accepted, chunks, and the Result.

        Iterating raises what `infer` raises; once a chunk was seen no other provider is tried.
        Leaving the block early stops the work.
        """
        send, receive = trio.open_memory_channel[Streamed | MeshError](STREAM_CAPACITY)
        with _alone():
            async with trio.open_nursery() as nursery:
                run = _Run(request, trio.current_time(), send.send, purse)
                nursery.start_soon(self._feed, run, wishes, send)
                async with aclosing(_streamed(receive)) as events:
                    yield events
                nursery.cancel_scope.cancel()

    async def _feed(
        self,
        run: _Run,
        wishes: Wishes | None,
        send: trio.MemorySendChannel[Streamed | MeshError],
    ) -> None:
        async with send:
            try:
                last: Result | MeshError = await self._run(run, wishes)
            except MeshError as error:
                last = error
            await send.send(last)

    async def _run(self, run: _Run, wishes: Wishes | None) -> Result:
        with self._timed(run):
            plan = await self._plan(run, wishes)
            run.excluded = plan.skipped
            return await self._try(run, plan.candidates)

    @contextmanager
    def _timed(self, run: _Run) -> Iterator[None]:
        """The one deadline of a request; its errors leave with its id."""
        try:
            self._check(run.request)
            with trio.move_on_at(run.deadline):
                yield
                return
            self._note_late(run)
            raise _too_late(run)
        except MeshError as error:
            error.request_id = run.request.id
            raise

    async def _plan(self, run: _Run, wishes: Wishes | None) -> Plan:
        settings = self._settings
        plan = await self._candidates.ranked(run.request, wishes or settings.wishes, settings.find_window)
        return Plan(plan.candidates[: settings.attempts], plan.skipped)

    def _check(self, request: InferenceRequest) -> None:
        if not 0 < request.timeout <= self._settings.longest:
            raise ValidationFailed(
                f"The timeout must be over 0 and at most {self._settings.longest:g} s,"
                f" not {request.timeout!r}."
            )

    # --- one after the other --------------------------------------------------------------------

    async def _try(self, run: _Run, candidates: Sequence[Candidate]) -> Result:
        for number, candidate in enumerate(candidates, 1):
            try:
                return await self._attempt(run, candidate, number, self._window(run, candidates[number:]))
            except MeshError as error:
                failure = _told(error, run, candidate.peer_id)
                self._learn(candidate.peer_id, failure)
                run.failures.append((candidate.peer_id, failure))
                if run.shown or not failure.try_next():
                    raise failure from error.__cause__
        raise self._advised(run, verdict(run.failures), candidates[0].offer.model_id)

    def _advised(self, run: _Run, error: MeshError, model: ModelId) -> MeshError:
        """The error with the way out, where the name has another model that somebody serves."""
        ref = run.request.model
        other = self._candidates.other(ref, model) if isinstance(error, NodeUnreachable) else None
        if other is None:
            return error
        return NodeUnreachable(
            f"{error.message} {ref} meant model {model}; another of that name can be asked for as"
            f" {ref.name}@{other}.",
            peer_id=error.peer_id,
            remote=error.remote,
        )

    def _window(self, run: _Run, others: Sequence[Candidate]) -> float:
        """Seconds for a provider to accept: half of what is left where others could still be asked."""
        left = run.deadline - trio.current_time()
        window = min(self._settings.attempt_window, left / 2 if others else left)
        return window if window < left else math.inf  # the deadline itself comes first

    async def _attempt(self, run: _Run, candidate: Candidate, number: int, window: float) -> Result:
        now = trio.current_time()
        if now >= run.deadline:  # trio cancels at the next checkpoint only
            raise _too_late(run)
        run.asked, run.asked_at, run.accepted = candidate, now, False
        attempt = Attempt(
            run.request.id,
            number,
            candidate.offer.model_id,
            run.request.input,
            candidate.fee,
            run.deadline - now,
            trace=current_trace(),
        )
        async with held(run.purse, attempt, lambda: run.accepted) as spend:
            with self._reputation.asking(candidate.peer_id), trio.move_on_after(window) as scope:
                result = await self._answer(run, candidate, attempt, scope)
                spend(result.fee)
                return result
            raise NodeUnreachable(
                f"{candidate.peer_id} did not accept the request within {window:.3g} s.",
                peer_id=candidate.peer_id,
            )

    async def _answer(
        self, run: _Run, candidate: Candidate, attempt: Attempt, window: trio.CancelScope
    ) -> Result:
        chunks: list[Chunk] = []
        try:
            async with self._served(candidate, attempt, window) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        return self._completed(run, candidate, attempt, chunks, event)
                    if isinstance(event, Chunk):
                        chunks.append(event)
                    else:
                        run.accepted, window.deadline = True, math.inf
                        self._reputation.accepted(candidate.peer_id, event.load)
                    await run.pass_on(event)
        except NetworkError as error:
            if error.remote or run.accepted:
                raise
            raise NodeUnreachable(error.message, peer_id=candidate.peer_id) from error
        raise ModelFailed("The answer ended without an end.", peer_id=candidate.peer_id)

    @asynccontextmanager
    async def _served(
        self, candidate: Candidate, attempt: Attempt, window: trio.CancelScope
    ) -> AsyncGenerator[AsyncIterator[Event]]:
        if candidate.peer_id == self._provider.peer_id:
            window.deadline = math.inf  # we are here; only the caller's time is the limit
            async with self._provider.serve(attempt, Consumer(candidate.peer_id)) as events:
                yield events
        else:
            session = await self._sessions.to(candidate.peer_id, candidate.addresses)
            async with ask(session, attempt) as events:
                yield events

    def _completed(
        self,
        run: _Run,
        candidate: Candidate,
        attempt: Attempt,
        chunks: Sequence[Chunk],
        event: Completed,
    ) -> Result:
        now = trio.current_time()
        self._reputation.answered(candidate.peer_id, attempt.model_id, now - run.asked_at, event.usage)
        return Result(
            request_id=attempt.request_id,
            model=candidate.offer.card.name,
            model_id=attempt.model_id,
            output=output_of(chunks),
            fee=event.fee,
            provider=candidate.peer_id,
            latency_ms=(now - run.started) * 1000,
            usage=event.usage,
            attempts=attempt.number,
            skipped=run.skipped,
            receipt=event.receipt,
        )

    # --- what is learnt -------------------------------------------------------------------------

    def _learn(self, peer: PeerId, failure: MeshError) -> None:
        if peer == self._provider.peer_id or not failure.try_next():
            return
        if isinstance(failure, ValidationFailed):
            self._reputation.disgraced(peer)
        elif isinstance(failure, NodeBusy):
            self._reputation.busy(peer, failure.retry_after)
        else:
            self._reputation.failed(peer)

    def _note_late(self, run: _Run) -> None:
        if run.asked is None:
            return
        peer, waited = run.asked.peer_id, trio.current_time() - run.asked_at
        self._reputation.late(peer, run.asked.offer.model_id, waited)
        if not run.accepted and waited >= self._settings.attempt_window / 2:
            self._learn(peer, NodeUnreachable(f"{peer} did not accept the request in time."))


async def _streamed(
    receive: trio.MemoryReceiveChannel[Streamed | MeshError],
) -> AsyncGenerator[Streamed]:
    async for event in receive:
        if isinstance(event, MeshError):
            raise event
        yield event


@contextmanager
def _alone() -> Iterator[None]:
    """Let what the caller's block raised out of the nursery's group as it was."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        only = group.exceptions[0]
        raise only from only.__cause__


def _too_late(run: _Run) -> RequestTimeout:
    return RequestTimeout(f"There was no answer within {run.request.timeout:g} s{tried(run.failures)}.")


def _told(error: MeshError, run: _Run, peer: PeerId) -> MeshError:
    """The failure of an attempt as the caller gets it.

    A peer that says the time is over while it is not has only given up.
    """
    if isinstance(error, NetworkError | NodeUnreachable) and not error.remote:
        return type(error)(named_once(error.message, peer), peer_id=peer)
    left = run.deadline - trio.current_time()
    if isinstance(error, RequestTimeout) and error.remote and left > _CLOCK_SLACK:
        return NetworkError(
            f"The provider gave up {left:.1f} s before the time was over.", peer_id=error.peer_id
        )
    return error
