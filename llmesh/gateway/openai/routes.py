"""The OpenAI-compatible routes: an official client with this node's `/v1` as its base URL works as it is."""

from __future__ import annotations

from functools import partial

from llmesh.errors import (
    Conflict,
    ModelNotFound,
)
from llmesh.gateway.callers import Scope
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, keyed
from llmesh.gateway.inference import ROUTER_ERRORS, Router
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openai.answers import (
    ChatCompletion,
    EmbeddingsAnswer,
    ErrorAnswer,
    ModelAnswer,
    ModelsAnswer,
    TextCompletion,
)
from llmesh.gateway.openai.embeddings import post_embeddings
from llmesh.gateway.openai.models import get_model, get_models
from llmesh.gateway.openai.requests import ChatBody, CompletionBody, EmbeddingsBody
from llmesh.gateway.openai.text import post_chat, post_completion
from llmesh.gateway.openapi import Route

__all__ = ["openai_routes"]

_ERRORS = (*ROUTER_ERRORS, Conflict)
_NAME = {"model": {"type": "string", "minLength": 1, "maxLength": 128}}


def openai_routes(router: Router, catalogue: Catalogue) -> tuple[Route, ...]:
    """All of them."""
    return (
        Route(
            "POST", "/v1/chat/completions", Scope.INFERENCE, keyed(partial(post_chat, router, catalogue)),
            "Answer a conversation.",
            answers=(ChatCompletion,), body=ChatBody, headers=IDEMPOTENCY_KEY, errors=_ERRORS, streams=True,
            failure=ErrorAnswer,
        ),
        Route(
            "POST", "/v1/completions", Scope.INFERENCE, keyed(partial(post_completion, router, catalogue)),
            "Go on with a text.",
            answers=(TextCompletion,), body=CompletionBody, headers=IDEMPOTENCY_KEY, errors=_ERRORS,
            streams=True, failure=ErrorAnswer,
        ),
        Route(
            "POST", "/v1/embeddings", Scope.INFERENCE, keyed(partial(post_embeddings, router, catalogue)),
            "Turn texts into vectors.",
            answers=(EmbeddingsAnswer,), body=EmbeddingsBody, headers=IDEMPOTENCY_KEY, errors=_ERRORS,
            failure=ErrorAnswer,
        ),
        Route(
            "GET", "/v1/models", Scope.READ, partial(get_models, catalogue),
            "The models that somebody serves.", answers=(ModelsAnswer,), failure=ErrorAnswer,
        ),
        Route(
            "GET", "/v1/models/{model}", Scope.READ, partial(get_model, catalogue),
            "One of these models.",
            answers=(ModelAnswer,), variables=_NAME, errors=(ModelNotFound,), failure=ErrorAnswer,
        ),
    )  # fmt: skip
