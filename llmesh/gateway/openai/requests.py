"""What the OpenAI-compatible routes take, as its API reference has it (v1).

A field that would change the answer and that no model here can honour is refused by name, unless it
says what holds anyway, such as `null`; a field that only describes the caller is taken and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from llmesh.core.encoding import Value
from llmesh.core.ids import RequestId
from llmesh.core.inference import InferenceRequest
from llmesh.core.reference import ModelRef
from llmesh.gateway.inference_schema import MAX_TIMEOUT
from llmesh.gateway.schema import MaxFee, parse_amount

__all__ = [
    "ChatBody",
    "CompletionBody",
    "EmbeddingsBody",
    "decode_chat",
    "decode_completion",
    "decode_embeddings",
]

MAX_INPUTS = 2048
_Zero = Annotated[float, Meta(ge=0, le=0, description="Only 0: no model here weighs tokens by it.")]
_Empty = Annotated[dict[str, float], Meta(max_length=0)]
_Model = Annotated[str, Meta(min_length=1, max_length=300, description="`name`, `name:version`, `name@id`.")]
_Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT, description="Seconds for the whole request.")]


class _Asked(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every route that runs a model takes."""

    model: _Model
    timeout: _Timeout = 30.0
    max_fee: MaxFee | None = None
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def request(self, id: RequestId, values: dict[str, Value]) -> InferenceRequest:
        """Raises ValidationFailed for a model or a fee that says nothing."""
        most = None if self.max_fee is None else parse_amount(self.max_fee, "max_fee")
        return InferenceRequest(id, ModelRef.parse(self.model), values, self.timeout, most)


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Generation(_Asked, kw_only=True):
    """How text is made; what is left out is the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = 1
    presence_penalty: _Zero | None = 0.0
    frequency_penalty: _Zero | None = 0.0
    logit_bias: _Empty | None = None
    store: Any = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Value]:
        """The named values that are not the prompt."""
        stop: Value = list(self.stop) if isinstance(self.stop, list) else self.stop
        given: dict[str, Value] = {
            "max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "repetition_penalty": self.repetition_penalty, "stop": stop,
            "seed": self.seed,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


class TextPart(Struct, forbid_unknown_fields=True):
    """A piece of a message."""

    text: str
    type: Literal["text"] = "text"


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """All of its text."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """Plain text is the only format."""

    type: Literal["text"]


class ChatBody(_Generation, kw_only=True):
    """A conversation to go on with."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: Any = None
    functions: None = None
    function_call: Literal["none"] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None

    def __post_init__(self) -> None:
        if self.logprobs:
            raise ValueError("logprobs must be false: no model here tells them")

    def to_request(self, id: RequestId) -> InferenceRequest:
        """The request these words stand for.  Raises ValidationFailed."""
        turns: list[Value] = [{"role": each.role, "content": each.text} for each in self.messages]
        values: dict[str, Any] = {"messages": turns, **self.sampling()}
        if self.max_completion_tokens is not None:
            values["max_tokens"] = self.max_completion_tokens
        return self.request(id, values)


class CompletionBody(_Generation, kw_only=True):
    """A text to go on with."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None
    echo: bool | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None
    logprobs: None = None

    def __post_init__(self) -> None:
        if self.echo:
            raise ValueError("echo must be false: the prompt is not said again")

    def to_request(self, id: RequestId) -> InferenceRequest:
        """The request these words stand for.  Raises ValidationFailed."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self.request(id, {"text": prompt, **self.sampling()})


class EmbeddingsBody(_Asked, kw_only=True):
    """Texts to turn into vectors."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None

    @property
    def texts(self) -> list[str]:
        """The texts, one at least."""
        return [self.input] if isinstance(self.input, str) else self.input


decode_chat = msgspec.json.Decoder(ChatBody).decode
decode_completion = msgspec.json.Decoder(CompletionBody).decode
decode_embeddings = msgspec.json.Decoder(EmbeddingsBody).decode
