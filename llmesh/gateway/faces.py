"""The faces that other software knows, each under a prefix of its own and with errors of its own shape."""

from __future__ import annotations

from llmesh.gateway.inference import Router
from llmesh.gateway.kserve.messages import tell_error as tell_kserve
from llmesh.gateway.kserve.routes import kserve_routes
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openai.answers import tell_error as tell_openai
from llmesh.gateway.openai.routes import openai_routes
from llmesh.gateway.openapi import Route
from llmesh.gateway.problems import Tell, tell_problem
from llmesh.gateway.status import NodeView

__all__ = ["face_routes", "tell_for"]

_TELL: dict[str, Tell] = {"v1": tell_openai, "v2": tell_kserve}


def face_routes(router: Router, catalogue: Catalogue, node: NodeView) -> tuple[Route, ...]:
    """All routes of all faces."""
    return (*openai_routes(router, catalogue), *kserve_routes(router, catalogue, node))


def tell_for(path: str) -> Tell:
    """How errors are told at a path, there or not."""
    return _TELL.get(path.split("/", 2)[1] if path.startswith("/") else "", tell_problem)
