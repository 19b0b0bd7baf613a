"""POST /api/v1/inference: parse, ask the Router, render.  The steps serve other faces as well."""

from __future__ import annotations

from typing import Protocol

from quart import Response

from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import ModelFailed
from llmesh.gateway.request import Request
from llmesh.gateway.schema import ResultBody, decode_body, encode

__all__ = ["Router", "post_inference", "render_result"]


class Router(Protocol):
    """What answers an inference; `mesh.router` does."""

    async def infer(self, request: InferenceRequest) -> Result:
        """Run it somewhere within its timeout.  Raises MeshError; cancelling stops the work."""


async def post_inference(router: Router, request: Request) -> Response:
    """Run one inference.  A client that hangs up cancels it."""
    body = decode_body(await request.json_bytes())
    result = await router.infer(body.to_request(request.id))
    return Response(render_result(result), content_type="application/json")


def render_result(result: Result) -> bytes:
    """The result as JSON.  Raises ModelFailed for values that no JSON can hold."""
    try:
        return encode(ResultBody.of(result))
    except (RecursionError, UnicodeEncodeError):
        raise ModelFailed(
            "The model's answer is nested too deeply or is not valid Unicode.",
            request_id=result.request_id,
            peer_id=result.provider,
        ) from None
