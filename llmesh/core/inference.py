"""One inference as data: what is asked, what comes back, piece by piece and whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llmesh.core.amount import Amount
from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.reference import ModelRef

__all__ = ["Attempt", "Chunk", "InferenceRequest", "Result", "Skipped", "Usage"]

_NOTHING: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a caller wants: `timeout` in seconds for the whole, `max_fee` per inference if limited."""

    id: RequestId
    model: ModelRef
    input: Mapping[str, Value]
    timeout: float = 30.0
    max_fee: Amount | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request at one provider: `quote` is the most it may charge, `timeout` what is left."""

    request_id: RequestId
    number: int
    model_id: ModelId
    input: Mapping[str, Value]
    quote: Amount
    timeout: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: text (and its token ids) of a stream, or named values; `index` counts from 0."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    values: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the work amounted to; token counts are 0 where a model has no tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Skipped:
    """A provider that did not answer a request: not wished for, or tried in vain; `code` of an error."""

    peer_id: PeerId
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """A finished inference: who served which model, what it said, what it cost, who was passed over."""

    request_id: RequestId
    model: str
    model_id: ModelId
    output: Mapping[str, Value]
    fee: Amount
    provider: PeerId
    latency_ms: float
    usage: Usage = Usage()
    attempts: int = 1
    skipped: tuple[Skipped, ...] = ()
