"""POST /api/v1/inference/batch: many inferences in one request, each of which succeeds or fails alone."""

from __future__ import annotations

from functools import partial

from msgspec import Raw
from quart import Response

from llmesh.errors import Conflict, MeshError
from llmesh.gateway.batch_schema import BatchBody, RowBody, RowsBody, decode_batch
from llmesh.gateway.callers import Scope
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, keyed
from llmesh.gateway.inference import Router, answer_inference
from llmesh.gateway.inference_schema import decode_inference
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.rows import Room, for_each, row_id
from llmesh.gateway.schema import decode, encode, problem

__all__ = ["batch_routes"]


def batch_routes(router: Router) -> tuple[Route, ...]:
    """The route of batches."""
    return (
        Route(
            "POST", "/api/v1/inference/batch", Scope.INFERENCE, keyed(partial(post_batch, router)),
            "Run many inferences; the results come in order, each a result or an error.",
            answers=(RowsBody,), body=BatchBody, headers=IDEMPOTENCY_KEY, errors=(Conflict,),
        ),
    )  # fmt: skip


async def post_batch(router: Router, request: Request) -> Response:
    """Run every row.  A client that hangs up cancels all of them."""
    rows = decode(await request.json_bytes(), decode_batch).requests
    results = [RowBody()] * len(rows)
    room = Room()

    async def answer(number: int) -> None:
        results[number] = await _answer(router, request, number, rows[number], room)

    await for_each(len(rows), answer)
    return Response(encode(RowsBody(request.id, results)), content_type="application/json")


async def _answer(router: Router, request: Request, number: int, row: Raw, room: Room) -> RowBody:
    id = row_id(request.id, number)
    try:
        body = decode(bytes(row), decode_inference)
        room.check()
        answer = await answer_inference(router, request.caller, id, body)
        room.take(len(answer))
        return RowBody(result=Raw(answer))
    except MeshError as error:
        return RowBody(error=problem(error, error.http_status, id))
