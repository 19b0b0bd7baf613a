"""POST /v1/embeddings: a vector for each text, each an inference of its own."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import trio
from quart import Response

from llmesh.core.encoding import Tensor
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import MeshError, ValidationFailed
from llmesh.gateway.callers import Counted
from llmesh.gateway.inference import Router
from llmesh.gateway.openai.answers import EmbeddingAnswer, EmbeddingsAnswer, UsageAnswer
from llmesh.gateway.openai.requests import decode_embeddings
from llmesh.gateway.request import Request, new_request_id
from llmesh.gateway.schema import decode, encode

__all__ = ["AT_ONCE", "post_embeddings"]

AT_ONCE = 16
"""Texts of one request that are under way at a time; the mesh batches them."""


async def post_embeddings(router: Router, request: Request) -> Response:
    """Turn texts into vectors; if one fails, all do.  A client that hangs up stops the work."""
    body = decode(await request.json_bytes(), decode_embeddings)
    ids = [request.id, *(new_request_id() for _ in body.texts[1:])]
    asked = [body.request(id, {"text": text}) for id, text in zip(ids, body.texts, strict=True)]
    request.caller.count(Counted.INFERENCE, len(asked))
    results = await _all(router, asked)
    write = _base64 if body.encoding_format == "base64" else _numbers
    vectors = [EmbeddingAnswer(index, write(_vector(result))) for index, result in enumerate(results)]
    read = sum(result.usage.input_tokens for result in results)
    answer = EmbeddingsAnswer(vectors, results[0].model, UsageAnswer(read, read))
    return Response(encode(answer), content_type="application/json")


async def _all(router: Router, asked: Sequence[InferenceRequest]) -> list[Result]:
    """The results in the order of the requests; the first failure ends them all."""
    results: dict[int, Result] = {}
    failures: list[MeshError] = []
    places = trio.CapacityLimiter(AT_ONCE)

    async def ask(index: int, one: InferenceRequest) -> None:
        try:
            async with places:
                results[index] = await router.infer(one)
        except MeshError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index, one in enumerate(asked):
            nursery.start_soon(ask, index, one)
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(asked))]


def _vector(result: Result) -> list[float]:
    value = result.output.get("embedding")
    numbers = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        raise ValidationFailed(f"{result.model} makes no embeddings; GET /v1/models tells what each does.")
    return [float(number) for number in numbers if isinstance(number, int | float)]


def _numbers(vector: list[float]) -> list[float] | str:
    return vector


def _base64(vector: list[float]) -> list[float] | str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
