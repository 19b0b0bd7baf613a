"""What the OpenAI-compatible routes answer, as its API reference has it (v1), errors too."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from quart import Response

from llmesh.core.inference import Result
from llmesh.gateway.schema import Mesh, Problem, encode, mesh

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChunkChoice",
    "Delta",
    "EmbeddingAnswer",
    "EmbeddingsAnswer",
    "ErrorAnswer",
    "MeshAnswer",
    "ModelAnswer",
    "ModelsAnswer",
    "TextChoice",
    "TextCompletion",
    "UsageAnswer",
    "error_of",
    "tell_error",
]

_FIELD = re.compile(r"`\$\.?([^`]*)`")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class UsageAnswer(Struct):
    """Tokens read and written."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET


class MeshAnswer(Struct):
    """What OpenAI has no field for: who served and what it cost."""

    request_id: str
    model_id: str
    provider: str
    fee: Mesh
    latency_ms: float

    @classmethod
    def of(cls, result: Result) -> MeshAnswer:
        return cls(
            result.request_id, result.model_id, result.provider, mesh(result.fee), round(result.latency_ms, 3)
        )


class AssistantMessage(Struct):
    """The model's turn."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(Struct):
    """The one answer."""

    message: AssistantMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct):
    """A whole answer to a conversation."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer
    llmesh: MeshAnswer
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct, omit_defaults=True):
    """What is new."""

    content: str | UnsetType = UNSET
    role: str | UnsetType = UNSET


class ChunkChoice(Struct):
    """A piece of the one answer."""

    delta: Delta
    finish_reason: str | None = None
    index: int = 0


class ChatChunk(Struct):
    """A piece of an answer to a conversation."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageAnswer | UnsetType = UNSET
    llmesh: MeshAnswer | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class TextChoice(Struct):
    """The one answer, or a piece of it."""

    text: str
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class TextCompletion(Struct):
    """How a text goes on, whole or a piece of it."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageAnswer | UnsetType = UNSET
    llmesh: MeshAnswer | UnsetType = UNSET
    object: Literal["text_completion"] = "text_completion"


class EmbeddingAnswer(Struct):
    """One vector, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingsAnswer(Struct):
    """The vectors, in the order of the texts."""

    data: list[EmbeddingAnswer]
    model: str
    usage: UsageAnswer
    object: Literal["list"] = "list"


class ModelAnswer(Struct):
    """A model that somebody of the mesh serves."""

    id: str
    owned_by: str
    task: str
    fee: Annotated[Mesh, Meta(description="The least that anybody asks, in MESH.")]
    created: int = 0
    object: Literal["model"] = "model"


class ModelsAnswer(Struct):
    """All of them."""

    data: list[ModelAnswer]
    object: Literal["list"] = "list"


class ErrorBody(Struct):
    """What went wrong, and what to do next."""

    message: str
    type: str
    code: str
    param: str | None = None
    request_id: str = ""


class ErrorAnswer(Struct):
    """An error as OpenAI's clients read it."""

    error: ErrorBody


def error_of(told: Problem) -> ErrorAnswer:
    """A problem in OpenAI's shape; `code` is the error's name in snake case."""
    kind = "invalid_request_error" if told.status < 500 else "server_error"
    field = _FIELD.search(told.detail)
    name = told.name if isinstance(told.name, str) else told.title.replace(" ", "")
    message = f"{told.detail} {told.next_step}".strip()
    code = _WORDS.sub("_", name).lower()
    return ErrorAnswer(ErrorBody(message, kind, code, field[1] if field else None, told.request_id))


def tell_error(told: Problem) -> Response:
    """The answer that tells a problem; what OpenAI has no status for is a bad request there."""
    status = 400 if told.status == 422 else told.status
    return Response(encode(error_of(told)), status, content_type="application/json")
