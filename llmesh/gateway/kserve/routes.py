"""The routes of the Open Inference Protocol (KServe V2): official clients of it work as they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmesh.errors import (
    Conflict,
    ModelNotFound,
    NodeBusy,
)
from llmesh.gateway.callers import Scope
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, keyed
from llmesh.gateway.inference import ROUTER_ERRORS, Router
from llmesh.gateway.kserve.infer import BINARY, post_infer
from llmesh.gateway.kserve.messages import (
    InferAnswer,
    InferBody,
    LiveAnswer,
    ReadyAnswer,
    ServerAnswer,
    V2Error,
    V2Model,
)
from llmesh.gateway.kserve.metadata import get_live, get_model, get_model_ready, get_ready, get_server
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openapi import Route
from llmesh.gateway.status import NodeView

__all__ = ["kserve_routes"]

_ERRORS = (*ROUTER_ERRORS, Conflict)
_MODEL = {"model": {"type": "string", "minLength": 1, "maxLength": 128}}
_VERSION = {"version": {"type": "string", "minLength": 1, "maxLength": 64}}
_TENSORS = {BINARY: {"type": "string", "format": "binary", "description": "The JSON, then tensors."}}


def kserve_routes(router: Router, catalogue: Catalogue, node: NodeView) -> tuple[Route, ...]:
    """All of them."""
    path = "/v2/models/{model}"
    return (
        Route("GET", "/v2", Scope.READ, get_server, "What this server is.",
              answers=(ServerAnswer,), failure=V2Error),
        Route("GET", "/v2/health/live", Scope.OPEN, get_live, "Whether the process is alive.",
              answers=(LiveAnswer,), failure=V2Error),
        Route("GET", "/v2/health/ready", Scope.OPEN, partial(get_ready, node), "Whether requests are served.",
              answers=(ReadyAnswer,), errors=(NodeBusy,), failure=V2Error),
        *_model_routes(path, _MODEL, router, catalogue),
        *_model_routes(f"{path}/versions/{{version}}", _MODEL | _VERSION, router, catalogue),
    )  # fmt: skip


def _model_routes(
    path: str, variables: dict[str, dict[str, object]], router: Router, catalogue: Catalogue
) -> Iterator[Route]:
    yield from (
        Route("GET", path, Scope.READ, partial(get_model, catalogue), "What a model takes and gives.",
              answers=(V2Model,), variables=variables, errors=(ModelNotFound,), failure=V2Error),
        Route("GET", f"{path}/ready", Scope.READ, partial(get_model_ready, catalogue),
              "Whether somebody serves it.",
              answers=(ReadyAnswer,), variables=variables, errors=(ModelNotFound,), failure=V2Error),
        Route("POST", f"{path}/infer", Scope.INFERENCE, keyed(partial(post_infer, router)),
              "Run it on tensors.",
              answers=(InferAnswer,), body=InferBody, uploads=_TENSORS, variables=variables,
              headers=IDEMPOTENCY_KEY, errors=_ERRORS, failure=V2Error),
    )  # fmt: skip
