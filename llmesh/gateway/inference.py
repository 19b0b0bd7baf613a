"""POST /api/v1/inference: parse, ask the Router, render.  The steps serve other faces as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from quart import Response

from llmesh.core.exchange import Accepted
from llmesh.core.ids import RequestId
from llmesh.core.inference import Chunk, InferenceRequest, Result
from llmesh.core.ranking import Plan
from llmesh.core.wishes import Wishes
from llmesh.errors import (
    InsufficientBalance,
    MeshError,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
)
from llmesh.gateway.callers import Caller, Counted
from llmesh.gateway.inference_schema import InferenceBody, PlanBody, ResultBody, decode_inference
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, encode, tellable
from llmesh.journal.purse import DurablePurse

__all__ = ["ROUTER_ERRORS", "Router", "Streamed", "answer_inference", "post_inference", "render_result"]

ROUTER_ERRORS: tuple[type[MeshError], ...] = (
    ModelNotFound, NodeUnreachable, NodeBusy, NetworkError, ModelFailed, InsufficientBalance, RequestTimeout,
)  # fmt: skip
"""How an inference may fail, by whichever face it is asked."""

Streamed: TypeAlias = Accepted | Chunk | Result
"""What a stream gives; the Result comes last."""


class Router(Protocol):
    """What answers an inference; `mesh.router` does."""

    async def infer(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> Result:
        """Run it somewhere within its timeout.  Raises MeshError; cancelling stops the work."""

    def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Streamed]]:
        """The answer as it comes.  Iterating raises MeshError; leaving the block stops the work."""

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        """Who would serve it, in order; nothing is run.  Raises MeshError."""


async def post_inference(router: Router, request: Request) -> Response:
    """Run one inference, or tell who would.  A client that hangs up cancels it."""
    body = decode(await request.json_bytes(), decode_inference)
    return Response(
        await answer_inference(router, request.caller, request.id, body), content_type="application/json"
    )


async def answer_inference(router: Router, caller: Caller, id: RequestId, body: InferenceBody) -> bytes:
    """The result, or the plan of a dry run, as JSON.  Raises MeshError."""
    asked, wishes = body.to_request(id), body.to_wishes()
    if body.dry_run:
        return encode(PlanBody.of(id, await router.plan(asked, wishes)))
    caller.count(Counted.INFERENCE)
    return render_result(await router.infer(asked, wishes, caller.purse))


def render_result(result: Result) -> bytes:
    """The result as JSON.  Raises ModelFailed for values that no JSON can hold."""
    with tellable():
        return encode(ResultBody.of(result))
