"""One inference as data: what is asked, what comes back, piece by piece and whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from llmesh.core.amount import Amount
from llmesh.core.encoding import Value
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.reference import ModelRef
from llmesh.core.trace import Trace

if TYPE_CHECKING:  # so that a client needs no signatures to hold a result
    from llmesh.core.payment import Payment
    from llmesh.core.receipt import SignedReceipt
    from llmesh.core.typed import Chain

__all__ = [
    "ANSWER_TOKENS", "Attempt", "Chunk", "Consumer", "InferenceRequest", "Result", "Skipped", "Usage",
    "output_of",
]  # fmt: skip

ANSWER_TOKENS = 512
"""The most tokens of an answer where neither request nor model says anything of it."""

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
    """One try of a request at one provider: `quote` is the most it may charge, `timeout` what is left.

    Work that costs something comes with its `payment`; `trace` is whose story it is part of.
    """

    request_id: RequestId
    number: int
    model_id: ModelId
    input: Mapping[str, Value]
    quote: Amount
    timeout: float
    payment: Payment | None = None
    trace: Trace | None = None

    @property
    def id(self) -> AttemptId:
        """What is charged once at most."""
        return AttemptId(self.request_id, self.number)


class Consumer(NamedTuple):
    """Who asks, and by which of the sessions that this node has counted."""

    peer_id: PeerId
    session: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: text (and its token ids) of a stream, or named values; `index` counts from 0."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    values: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the work amounted to; token counts are 0 where a model has no tokens.

    `shared` is how many requests were answered by the same run; 0 where that is not known, as of a peer's.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    compute_ms: float = 0.0
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """A provider that did not answer a request: not wished for, or tried in vain; `code` of an error."""

    peer_id: PeerId
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """A finished inference: who served which model, what it said, what it cost, who was passed over.

    `receipt` is the provider's, signed for the ledger `chain`.
    """

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
    receipt: SignedReceipt | None = None
    chain: Chain | None = None


def output_of(chunks: Iterable[Chunk]) -> dict[str, Value]:
    """A whole answer: all named values, the latest of each name, and the pieces of text as `text`."""
    texts: list[str] = []
    output: dict[str, Value] = {}
    for chunk in chunks:
        texts.append(chunk.text)
        output |= chunk.values
    text = "".join(texts)
    return {**output, "text": text} if text else output
