"""POST /api/v1/inference/batch: many inferences in one request, each of which succeeds or fails alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import trio
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
from llmesh.gateway.rows import row_id
from llmesh.gateway.schema import decode, encode, problem

__all__ = ["AT_ONCE", "batch_routes"]

AT_ONCE = 32
"""Rows of one batch that run at the same time; the others wait, and their time does not count yet."""


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
    left = iter(enumerate(rows))
    answer = partial(_answer, router, request)
    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, len(rows))):
            nursery.start_soon(_work, answer, left, results)
    return Response(encode(RowsBody(request.id, results)), content_type="application/json")


async def _work(
    answer: Callable[[int, Raw], Awaitable[RowBody]],
    left: Iterator[tuple[int, Raw]],
    results: list[RowBody],
) -> None:
    """Take one row after the other until none is left."""
    for number, row in left:
        results[number] = await answer(number, row)


async def _answer(router: Router, request: Request, number: int, row: Raw) -> RowBody:
    id = row_id(request.id, number)
    try:
        body = decode(bytes(row), decode_inference)
        return RowBody(result=Raw(await answer_inference(router, request.caller, id, body)))
    except MeshError as error:
        return RowBody(error=problem(error, error.http_status, id))
