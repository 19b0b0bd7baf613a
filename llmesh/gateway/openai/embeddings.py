"""POST /v1/embeddings: a vector for each text, each an inference of its own."""

from __future__ import annotations

import base64
import struct

from quart import Response

from llmesh.core.encoding import Tensor
from llmesh.core.inference import Result
from llmesh.core.model import EMBEDDINGS
from llmesh.errors import ValidationFailed
from llmesh.gateway.callers import Counted
from llmesh.gateway.inference import Router
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openai.answers import EmbeddingAnswer, EmbeddingsAnswer, UsageAnswer
from llmesh.gateway.openai.models import expect_task
from llmesh.gateway.openai.requests import decode_embeddings
from llmesh.gateway.request import Request
from llmesh.gateway.rows import infer_all, row_id
from llmesh.gateway.schema import decode, encode, tellable

__all__ = ["post_embeddings"]


async def post_embeddings(router: Router, catalogue: Catalogue, request: Request) -> Response:
    """Turn texts into vectors; if one fails, all do.  A client that hangs up stops the work."""
    body = decode(await request.json_bytes(), decode_embeddings)
    ids = [request.id, *(row_id(request.id, number) for number in range(1, len(body.texts)))]
    asked = [body.request(id, {"text": text}) for id, text in zip(ids, body.texts, strict=True)]
    expect_task(catalogue, asked[0].model, EMBEDDINGS)
    request.caller.count(Counted.INFERENCE, len(asked))
    results = await infer_all(router, asked, request.caller.purse)
    write = _base64 if body.encoding_format == "base64" else _numbers
    with tellable():
        vectors = [EmbeddingAnswer(index, write(_vector(result))) for index, result in enumerate(results)]
    read = sum(result.usage.input_tokens for result in results)
    answer = EmbeddingsAnswer(vectors, results[0].model, UsageAnswer(read, read))
    return Response(encode(answer), content_type="application/json")


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
