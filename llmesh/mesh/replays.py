"""Replays: the answer to a request that was paid for before, from the provider that was paid.

A request under an Idempotency-Key may come again, also after a restart.  The Journal tells whom this
node has paid for it, or may have paid; that provider is asked for the very attempt, which it answers
with the receipt and the output that it stored, and charges nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import trio

from llmesh.core.digest import values_digest
from llmesh.core.encoding import Value
from llmesh.core.exchange import Completed
from llmesh.core.ids import is_keyed
from llmesh.core.inference import Attempt, Chunk, Result, output_of
from llmesh.core.payment import Payment
from llmesh.core.ranking import Candidate
from llmesh.core.receipt import SignedReceipt
from llmesh.errors import MeshError
from llmesh.mesh.payments import Payments
from llmesh.mesh.run import Run
from llmesh.net.inference import ask
from llmesh.net.sessions import Sessions

__all__ = ["Replays"]

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for a provider to repeat its answer; also half of what the request has left, if that is less."""


class Replays:
    """Asks by the same sessions as all else."""

    def __init__(self, payments: Payments, sessions: Sessions) -> None:
        self._payments = payments
        self._sessions = sessions

    async def answer(self, run: Run, candidates: Sequence[Candidate]) -> Result | None:
        """What was answered before, if a provider that was paid for it is there and still has it.

        Raises TransactionFailed where the Journal cannot be read.
        """
        if not is_keyed(run.request.id):
            return None
        for peer, receipt in await self._payments.paid_before(run.request.id):
            candidate = next((c for c in candidates if c.peer_id == peer), None)
            if candidate is None or candidate.offer.model_id != receipt.receipt.work.model:
                continue
            output = await self._repeated(run, candidate, receipt)
            if output is not None:
                return self._result(run, candidate, receipt, output)
        return None

    async def _repeated(
        self, run: Run, candidate: Candidate, receipt: SignedReceipt
    ) -> Mapping[str, Value] | None:
        """What that receipt was for, word for word; None if the provider does not give that."""
        left = run.deadline - trio.current_time()
        try:
            with trio.move_on_after(min(PATIENCE, left / 2)):
                said = await self._said(run, candidate, receipt, left)
                if values_digest(said) == receipt.receipt.work.output_digest:
                    return said
        except MeshError as error:
            log.info("%s does not repeat what it was paid for: %s", candidate.peer_id, error.message)
        return None

    async def _said(
        self, run: Run, candidate: Candidate, receipt: SignedReceipt, left: float
    ) -> Mapping[str, Value]:
        payee, work = candidate.payee, receipt.receipt.work
        offer = payee.offer if payee else receipt.receipt.offer
        attempt = Attempt(
            run.request.id,
            receipt.attempt.number,
            work.model,
            run.request.input,
            max(candidate.fee, receipt.charge.price),
            left,
            Payment(receipt.charge.channel, offer),
        )
        chunks: list[Chunk] = []
        session = await self._sessions.to(candidate.peer_id, candidate.addresses)
        async with ask(session, attempt) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    chunks.append(event)
                elif isinstance(event, Completed) and event.receipt != receipt:
                    return {}
        return output_of(chunks)

    def _result(
        self, run: Run, candidate: Candidate, receipt: SignedReceipt, output: Mapping[str, Value]
    ) -> Result:
        return Result(
            request_id=run.request.id,
            model=candidate.offer.card.name,
            model_id=receipt.receipt.work.model,
            output=output,
            fee=receipt.charge.price,
            provider=candidate.peer_id,
            latency_ms=(trio.current_time() - run.started) * 1000,
            skipped=run.skipped,
            receipt=receipt,
            chain=self._payments.tabs.credentials.chain,
        )
