"""What the client returns: small frozen objects, read from the gateway's JSON.

Fields that this version does not know are passed over; a missing one raises KeyError.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Skipped, Usage
from llmesh_sdk.receipts import AnswerReceipt

__all__ = ["InferencePlan", "InferenceResult", "MeshEvent", "ModelOffer", "NodeStatus", "StreamChunk"]


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model at one price (per inference) by one provider."""

    name: str
    version: str
    model_id: ModelId
    task: str
    fee: Amount
    provider: PeerId
    stake: Amount
    description: str = field(default="", repr=False)
    licence: str = field(default="", repr=False)
    variant: str = field(default="", repr=False)
    execution: str = field(default="", repr=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            name=fields["name"],
            version=fields["version"],
            model_id=ModelId(fields["model_id"]),
            task=fields["task"],
            fee=Amount.parse(fields["fee"]),
            provider=PeerId(fields["provider"]),
            stake=Amount.parse(fields["stake"]),
            description=fields.get("description", ""),
            licence=fields.get("licence", ""),
            variant=fields.get("variant", ""),
            execution=fields.get("execution", ""),
        )


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """What a model answered, who ran it, what it cost, and who was passed over and why.

    `output` holds values by name; tensors are nested lists, NaN and infinity are None.  `receipt` is what
    the provider has signed for it.
    """

    output: dict[str, Any]
    model: str
    model_id: ModelId
    fee: Amount
    provider: PeerId
    latency_ms: float
    request_id: RequestId = field(repr=False)
    usage: Usage = field(default=Usage(), repr=False)
    attempts: int = field(default=1, repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    receipt: AnswerReceipt | None = field(default=None, repr=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        usage, receipt = fields.get("usage", {}), fields.get("receipt")
        request = RequestId(fields["request_id"])
        return cls(
            output=dict(fields["output"]),
            model=fields["model"],
            model_id=ModelId(fields["model_id"]),
            fee=Amount.parse(fields["fee"]),
            provider=PeerId(fields["provider"]),
            latency_ms=float(fields["latency_ms"]),
            request_id=request,
            usage=Usage(
                usage.get("input_tokens", 0), usage.get("output_tokens", 0), usage.get("compute_ms", 0.0)
            ),
            attempts=fields.get("attempts", 1),
            skipped=_skipped(fields),
            receipt=AnswerReceipt.read(receipt, request) if receipt else None,
        )


@dataclass(frozen=True, slots=True)
class InferencePlan:
    """Who would serve a request, the first first, each with its fee; and who was passed over."""

    model: str
    model_id: ModelId
    fee: Amount
    providers: tuple[tuple[PeerId, Amount], ...]
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            model=fields["model"],
            model_id=ModelId(fields["model_id"]),
            fee=Amount.parse(fields["fee"]),
            providers=tuple((PeerId(p["provider"]), Amount.parse(p["fee"])) for p in fields["providers"]),
            skipped=_skipped(fields),
        )


def _skipped(fields: Mapping[str, Any]) -> tuple[Skipped, ...]:
    return tuple(
        Skipped(PeerId(each["peer"]), each["code"], each["reason"]) for each in fields.get("skipped", ())
    )


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """A piece of the text of a stream; `index` counts from 0."""

    index: int
    text: str

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(int(fields["index"]), str(fields["text"]))


@dataclass(frozen=True, slots=True)
class MeshEvent:
    """Something that happened at a node: its name, what it tells, and how many before it were lost."""

    name: str
    data: dict[str, Any]
    dropped: int = 0

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(str(fields["event"]), dict(fields["data"]), int(fields["dropped"]))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told of which events; `secret` is the one that the node made, None where you gave it.

    It is registered; awaiting it gives it back, for programs that await every call.
    """

    id: str
    url: str
    events: tuple[str, ...]
    secret: str | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(str(fields["id"]), str(fields["url"]), tuple(fields["events"]), fields.get("secret"))

    def __await__(self) -> Generator[None, None, Self]:
        yield from ()
        return self


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at one moment: counts of its peers and its own models; `uptime` in seconds.

    `reachable` is None while no peer has tried to dial back.
    """

    node_id: PeerId
    version: str
    peers: int
    models: int
    stake: Amount
    earnings: Amount
    addresses: tuple[str, ...] = ()
    reachable: bool | None = None
    uptime: float = 0.0

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            node_id=PeerId(fields["node_id"]),
            version=fields["version"],
            peers=fields["peers"],
            models=fields["models"],
            stake=Amount.parse(fields["stake"]),
            earnings=Amount.parse(fields["earnings"]),
            addresses=tuple(fields.get("addresses", ())),
            reachable=fields.get("reachable"),
            uptime=fields.get("uptime", 0.0),
        )
