"""POST /v1/chat/completions and /v1/completions: text, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

from msgspec import UNSET, Struct
from quart import Response

from llmesh.core.exchange import Accepted
from llmesh.core.inference import Chunk, InferenceRequest, Result
from llmesh.core.model import TEXT_GENERATION
from llmesh.errors import MeshError
from llmesh.gateway.callers import Counted
from llmesh.gateway.idempotency import refuse_key
from llmesh.gateway.inference import Router, Streamed
from llmesh.gateway.live import Live, server_sent, with_failure
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openai.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Delta,
    MeshAnswer,
    TextChoice,
    TextCompletion,
    UsageAnswer,
    error_of,
    tell_error,
)
from llmesh.gateway.openai.models import expect_task
from llmesh.gateway.openai.requests import ChatBody, CompletionBody, decode_chat, decode_completion
from llmesh.gateway.problems import answer_to, problem_of
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, encode, tellable

__all__ = ["post_chat", "post_completion"]

_Stream: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncIterator[Streamed]]]
_DONE = server_sent(b"[DONE]")


class _Shape(Protocol):
    """How an answer is written."""

    def whole(self, result: Result) -> Struct:
        """All at once."""

    def opening(self) -> Iterator[Struct]:
        """What a stream begins with."""

    def piece(self, text: str) -> Struct:
        """More of it."""

    def closing(self, result: Result) -> Struct:
        """Why it ends here."""

    def usage(self, result: Result) -> Struct:
        """What it amounted to."""


@dataclass(frozen=True, slots=True)
class _Chat:
    """An assistant's turn."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result) -> Struct:
        choice = ChatChoice(AssistantMessage(_text(result)), _reason(result))
        return ChatCompletion(
            self.id, self.created, result.model, [choice], _usage(result), MeshAnswer.of(result)
        )

    def opening(self) -> Iterator[Struct]:
        yield self._chunk(ChunkChoice(Delta(content="", role="assistant")))

    def piece(self, text: str) -> Struct:
        return self._chunk(ChunkChoice(Delta(content=text)))

    def closing(self, result: Result) -> Struct:
        return self._chunk(ChunkChoice(Delta(), _reason(result)), result)

    def usage(self, result: Result) -> Struct:
        return ChatChunk(self.id, self.created, self.model, [], _usage(result))

    def _chunk(self, choice: ChunkChoice, result: Result | None = None) -> ChatChunk:
        served = MeshAnswer.of(result) if result else UNSET
        return ChatChunk(self.id, self.created, self.model, [choice], llmesh=served)


@dataclass(frozen=True, slots=True)
class _Continuation:
    """A text that goes on."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result) -> Struct:
        choices = [TextChoice(_text(result), _reason(result))]
        return TextCompletion(
            self.id, self.created, result.model, choices, _usage(result), MeshAnswer.of(result)
        )

    def opening(self) -> Iterator[Struct]:
        return iter(())

    def piece(self, text: str) -> Struct:
        return TextCompletion(self.id, self.created, self.model, [TextChoice(text)])

    def closing(self, result: Result) -> Struct:
        choices = [TextChoice("", _reason(result))]
        return TextCompletion(self.id, self.created, self.model, choices, llmesh=MeshAnswer.of(result))

    def usage(self, result: Result) -> Struct:
        return TextCompletion(self.id, self.created, self.model, [], _usage(result))


async def post_chat(router: Router, catalogue: Catalogue, request: Request) -> Response:
    """Answer a conversation.  A client that hangs up stops the work."""
    body = decode(await request.json_bytes(), decode_chat)
    shape = _Chat(f"chatcmpl-{request.id}", body.model)
    asked = body.to_request(request.id)
    expect_task(catalogue, asked.model, TEXT_GENERATION)
    return await _answer(router, request, body, shape, asked)


async def post_completion(router: Router, catalogue: Catalogue, request: Request) -> Response:
    """Go on with a text.  A client that hangs up stops the work."""
    body = decode(await request.json_bytes(), decode_completion)
    shape = _Continuation(f"cmpl-{request.id}", body.model)
    asked = body.to_request(request.id)
    expect_task(catalogue, asked.model, TEXT_GENERATION)
    return await _answer(router, request, body, shape, asked)


async def _answer(
    router: Router, request: Request, body: ChatBody | CompletionBody, shape: _Shape, asked: InferenceRequest
) -> Response:
    caller = request.caller
    if body.stream:
        refuse_key(request)
    caller.count(Counted.INFERENCE)
    if body.stream:
        return _live(partial(router.stream, asked, None, caller.purse), asked, shape, body.tells_usage)
    return _json(shape.whole(await router.infer(asked, None, caller.purse)))


def _live(stream: _Stream, asked: InferenceRequest, shape: _Shape, usage: bool) -> Live:
    def tell(error: MeshError) -> bytes:
        return _event(error_of(problem_of(error, asked.id)))

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[bytes]]:
        async with (
            stream() as events,
            aclosing(with_failure(_pieces(events, shape, usage), tell)) as pieces,
        ):
            yield pieces

    return Live(opened, partial(answer_to, request_id=asked.id, tell=tell_error))


async def _pieces(events: AsyncIterator[Streamed], shape: _Shape, usage: bool) -> AsyncGenerator[bytes]:
    begun = False
    async for event in events:
        if isinstance(event, Accepted) or (isinstance(event, Chunk) and not event.text):
            continue
        if not begun:
            begun = True
            for struct in shape.opening():
                yield _event(struct)
        if isinstance(event, Chunk):
            yield _event(shape.piece(event.text))
        else:
            yield _event(shape.closing(event))
            if usage:
                yield _event(shape.usage(event))
            yield _DONE


def _event(struct: Struct) -> bytes:
    with tellable():
        return server_sent(encode(struct))


def _text(result: Result) -> str:
    text = result.output.get("text", "")
    return text if isinstance(text, str) else ""


def _reason(result: Result) -> str:
    reason = result.output.get("finish_reason")
    return reason if isinstance(reason, str) else "stop"


def _usage(result: Result) -> UsageAnswer:
    read, written = result.usage.input_tokens, result.usage.output_tokens
    return UsageAnswer(read, read + written, written)


def _json(struct: Struct) -> Response:
    with tellable():
        return Response(encode(struct), content_type="application/json")
