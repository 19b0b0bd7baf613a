"""What one attempt does to its caller's purse: its quote is held before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId
from llmesh.core.inference import Attempt
from llmesh.errors import MeshError
from llmesh.journal.purse import DurablePurse

__all__ = ["held"]


@asynccontextmanager
async def held(
    purse: DurablePurse | None, attempt: Attempt, accepted: Callable[[], bool]
) -> AsyncGenerator[Callable[[Amount], None]]:
    """Hold the attempt's quote for the block; the block calls what it is given with the price.

    Raises InsufficientBalance, TransactionFailed.  A block that fails gives the quote back, unless the
    provider had accepted and has not said itself that it failed: then it may come to charge, and what
    it may charge stays held.
    """
    if purse is None:
        yield _unlimited
        return
    id = AttemptId(attempt.request_id, attempt.number)
    await purse.hold(id, attempt.quote)
    try:
        yield partial(purse.spend, id)
    except BaseException as error:
        if not accepted() or (isinstance(error, MeshError) and error.remote):
            purse.release(id)
        raise


def _unlimited(_: Amount) -> None:
    """Nobody counts."""
