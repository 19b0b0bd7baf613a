"""Router: one request in, one answer out, whoever of the mesh gives it.

Tries the candidates one after the other under one deadline.  It chooses neither model nor order
(mesh.candidates) and moves no bytes: peers are asked through net.inference, this node's own models
through the Provider, by the same steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from llmesh.core.credentials import class_of
from llmesh.core.digest import values_digest
from llmesh.core.encoding import Value
from llmesh.core.exchange import Completed, Event
from llmesh.core.ids import AttemptId, ModelId, PeerId
from llmesh.core.inference import Attempt, Chunk, Consumer, InferenceRequest, Result, output_of
from llmesh.core.ranking import Candidate, Plan
from llmesh.core.receipt import SignedReceipt, Work, check_answer, check_receipt
from llmesh.core.verdict import verdict
from llmesh.core.wishes import Wishes
from llmesh.errors import (
    MeshError,
    ModelFailed,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    ValidationFailed,
)
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.candidates import Candidates, Offers
from llmesh.mesh.payments import Payments, Purchase
from llmesh.mesh.provider import Provider
from llmesh.mesh.replays import Replays
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.run import Run, Streamed, once_more, told, too_late, unpaid
from llmesh.mesh.tabs import blamed
from llmesh.mesh.tracing import current_trace
from llmesh.net.inference import ask
from llmesh.net.sessions import Sessions

__all__ = ["Router", "RouterSettings", "Streamed"]

STREAM_CAPACITY = 0
"""Events of a stream that wait for its reader: none, so that a slow reader holds back its provider."""


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


_DEFAULT = RouterSettings()


class Router:
    """Finds who answers a request; cancelling any of its calls stops the work everywhere."""

    def __init__(
        self,
        provider: Provider,
        sessions: Sessions,
        offers: Offers,
        reputation: Reputation,
        payments: Payments,
        settings: RouterSettings = _DEFAULT,
    ) -> None:
        tabs = payments.tabs
        self._provider = provider
        self._sessions = sessions
        self._payments = payments
        self._replays = Replays(payments, sessions)
        self._candidates = Candidates(
            provider, offers, reputation, tabs.credentials.chain, tabs.settings.clock
        )
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
        return await self._run(Run(request, trio.current_time(), None, purse), wishes)

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        """Who would serve the request now, in order, and at what fee; nothing is run.

        Raises ModelNotFound, RequestTimeout, ValidationFailed.
        """
        run = Run(request, trio.current_time(), None)
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
                run = Run(request, trio.current_time(), send.send, purse)
                nursery.start_soon(self._feed, run, wishes, send)
                async with aclosing(_streamed(receive)) as events:
                    yield events
                nursery.cancel_scope.cancel()

    async def _feed(
        self,
        run: Run,
        wishes: Wishes | None,
        send: trio.MemorySendChannel[Streamed | MeshError],
    ) -> None:
        async with send:
            try:
                last: Result | MeshError = await self._run(run, wishes)
            except MeshError as error:
                last = error
            await send.send(last)

    async def _run(self, run: Run, wishes: Wishes | None) -> Result:
        with self._timed(run):
            plan = await self._plan(run, wishes)
            run.excluded = plan.skipped
            before = await self._replays.answer(run, plan.candidates)
            return before or await self._try(run, plan.candidates)

    @contextmanager
    def _timed(self, run: Run) -> Iterator[None]:
        """The one deadline of a request; its errors leave with its id."""
        try:
            self._check(run.request)
            with trio.move_on_at(run.deadline):
                yield
                return
            self._note_late(run)
            raise too_late(run)
        except MeshError as error:
            error.request_id = run.request.id
            raise

    async def _plan(self, run: Run, wishes: Wishes | None) -> Plan:
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

    async def _try(self, run: Run, candidates: Sequence[Candidate]) -> Result:
        left = deque(candidates)
        while left:
            candidate, run.attempts = left.popleft(), run.attempts + 1
            number = self._payments.number(run.request.id)
            try:
                return await self._attempt(run, candidate, number, left)
            except MeshError as error:
                if once_more(error, run, candidate, left):
                    continue
                failure = told(error, run, candidate)
                self._learn(candidate.peer_id, failure)
                run.failures.append((candidate.peer_id, failure))
                if unpaid(failure):
                    left = deque(c for c in left if not c.fee or self._payments.tabs.covers(c))
                if run.shown or not (failure.try_next() or (unpaid(failure) and left)):
                    raise failure from error.__cause__
        raise self._advised(run, verdict(run.failures), candidates[0].offer.model_id)

    def _advised(self, run: Run, error: MeshError, model: ModelId) -> MeshError:
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

    def _window(self, run: Run, others: Sequence[Candidate]) -> float:
        """Seconds for a provider to accept: half of what is left where others could still be asked."""
        left = run.deadline - trio.current_time()
        window = min(self._settings.attempt_window, left / 2 if others else left)
        return window if window < left else math.inf  # the deadline itself comes first

    async def _attempt(
        self, run: Run, candidate: Candidate, number: int, others: Sequence[Candidate]
    ) -> Result:
        run.asked, run.asked_at, run.accepted = candidate, trio.current_time(), False
        window = self._window(run, others)
        if not candidate.fee:
            return await self._ask(run, candidate, number, others, None)
        attempt = AttemptId(run.request.id, number)
        wait = all(other.peer_id in run.full for other in others)
        async with self._payments.paid(candidate, attempt, run.purse, window, wait=wait) as purchase:
            return await self._ask(run, candidate, number, others, purchase)

    async def _ask(
        self,
        run: Run,
        candidate: Candidate,
        number: int,
        others: Sequence[Candidate],
        purchase: Purchase | None,
    ) -> Result:
        now, window = trio.current_time(), self._window(run, others)
        if now >= run.deadline:  # trio cancels at the next checkpoint only
            raise too_late(run)
        run.asked_at = now
        attempt = Attempt(
            run.request.id,
            number,
            candidate.offer.model_id,
            run.request.input,
            candidate.fee,
            run.deadline - now,
            purchase.payment if purchase else None,
            current_trace(),
        )
        with self._reputation.asking(candidate.peer_id), trio.move_on_after(window) as scope:
            return await self._answer(run, candidate, attempt, scope, purchase)
        raise NodeUnreachable(
            f"{candidate.peer_id} did not accept the request within {window:.3g} s.",
            peer_id=candidate.peer_id,
        )

    async def _answer(
        self,
        run: Run,
        candidate: Candidate,
        attempt: Attempt,
        window: trio.CancelScope,
        purchase: Purchase | None,
    ) -> Result:
        chunks: list[Chunk] = []
        try:
            async with self._served(candidate, attempt, window, purchase) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        output = output_of(chunks)
                        self._believe(run, candidate, attempt, output, event.receipt)
                        if purchase is not None:
                            self._settle(purchase, event.receipt)
                        return self._completed(run, candidate, attempt, output, event)
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
        self,
        candidate: Candidate,
        attempt: Attempt,
        window: trio.CancelScope,
        purchase: Purchase | None,
    ) -> AsyncGenerator[AsyncIterator[Event]]:
        if candidate.peer_id == self._provider.peer_id:
            window.deadline = math.inf  # we are here; only the caller's time is the limit
            async with self._provider.serve(attempt, Consumer(candidate.peer_id)) as events:
                yield events
        else:
            if purchase is not None:
                session, purchase.sent = purchase.session, True
            else:
                session = await self._sessions.to(candidate.peer_id, candidate.addresses)
            async with ask(session, attempt) as events:
                yield events

    def _believe(
        self,
        run: Run,
        candidate: Candidate,
        attempt: Attempt,
        output: Mapping[str, Value],
        signed: SignedReceipt,
    ) -> None:
        """Refuse an answer whose receipt does not say just that.  Raises ValidationFailed with `peer_id`."""
        payee = candidate.payee
        if payee is None:
            return  # this node's own
        self._payments.tabs.accuser.hear(signed)
        with blamed(candidate.peer_id):
            asked, got = run.input_digest, values_digest(output)
            work = Work(attempt.model_id, class_of(candidate.offer), asked, got)
            check_answer(signed.receipt, payee.account, attempt.id, work, attempt.quote)
            if attempt.payment is None:
                check_receipt(signed, payee.chain)
            elif signed.charge.price and signed.receipt.offer != payee.offer:
                raise ValidationFailed("The receipt is for another offer.")

    def _settle(self, purchase: Purchase, receipt: SignedReceipt) -> None:
        with blamed(purchase.tab.peer):
            self._payments.settle(purchase, receipt)

    def _completed(
        self,
        run: Run,
        candidate: Candidate,
        attempt: Attempt,
        output: Mapping[str, Value],
        event: Completed,
    ) -> Result:
        now = trio.current_time()
        self._reputation.answered(candidate.peer_id, attempt.model_id, now - run.asked_at, event.usage)
        return Result(
            request_id=attempt.request_id,
            model=candidate.offer.card.name,
            model_id=attempt.model_id,
            output=output,
            fee=event.fee,
            provider=candidate.peer_id,
            latency_ms=(now - run.started) * 1000,
            usage=event.usage,
            attempts=run.attempts,
            skipped=run.skipped,
            receipt=event.receipt,
            chain=candidate.payee.chain if candidate.payee else self._payments.tabs.credentials.chain,
        )

    # --- what is learnt -------------------------------------------------------------------------

    def _learn(self, peer: PeerId, failure: MeshError) -> None:
        if peer == self._provider.peer_id or not failure.try_next():
            return
        if isinstance(failure, ValidationFailed):
            self._reputation.disgraced(peer)
        elif isinstance(failure, NodeBusy):
            if failure.remote:  # else it is this node that does not trust it with more at once
                self._reputation.busy(peer, failure.retry_after)
        else:
            self._reputation.failed(peer)

    def _note_late(self, run: Run) -> None:
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
