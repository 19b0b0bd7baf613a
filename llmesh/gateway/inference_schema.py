"""The JSON shapes of inference: what is asked, by which wishes, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, Struct

from llmesh.core.address import address_text
from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import RequestId, peer_id
from llmesh.core.inference import InferenceRequest, Result, Skipped
from llmesh.core.ranking import Candidate, Plan
from llmesh.core.receipt import SignedReceipt, receipt_digest
from llmesh.core.reference import ModelRef
from llmesh.core.typed import Chain
from llmesh.core.wishes import Sort, Wishes
from llmesh.gateway.schema import MaxFee, Mesh, mesh, parse_amount

__all__ = [
    "AskedBody",
    "InferenceBody",
    "PlanBody",
    "ProvidersBody",
    "ResultBody",
    "SignedBody",
    "SkippedBody",
    "UsageBody",
    "decode_inference",
]

MAX_TIMEOUT = 3600.0
MAX_PROVIDERS = 64
_Text = Annotated[str, Meta(min_length=1)]
_Named = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=256)], Any], Meta(min_length=1, max_length=256)
]
_Peer = Annotated[str, Meta(description="A peer id.", pattern="^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]
_Peers = Annotated[tuple[_Peer, ...], Meta(max_length=MAX_PROVIDERS)]


class ProvidersBody(Struct, forbid_unknown_fields=True, frozen=True):
    """Which providers may serve."""

    only: Annotated[_Peers, Meta(description="Nobody else; empty for all.")] = ()
    ignore: Annotated[_Peers, Meta(description="None of these.")] = ()


_ALL = ProvidersBody()


class AskedBody(Struct, forbid_unknown_fields=True):
    """What to run on what, and by whom."""

    model: Annotated[
        str, Meta(min_length=1, max_length=300, description="`name`, `name:version` or `name@id`.")
    ]
    input: Annotated[_Text | _Named, Meta(description='Values by name; a bare string means {"text": ...}.')]
    timeout: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT, description="Seconds for the whole request.")] = 30.0
    max_fee: MaxFee | None = None
    sort: Annotated[
        Literal["price", "latency", "throughput"], Meta(description="What comes first among providers.")
    ] = "price"
    providers: ProvidersBody = _ALL
    min_stake: Annotated[
        int | float | str,
        Meta(description="MESH that a provider must have bonded, or its decimal text; this node needs none."),
    ] = 0

    def to_request(self, id: RequestId) -> InferenceRequest:
        """The request these words stand for.  Raises ValidationFailed."""
        return InferenceRequest(
            id=id,
            model=ModelRef.parse(self.model),
            input={"text": self.input} if isinstance(self.input, str) else self.input,
            timeout=self.timeout,
            max_fee=None if self.max_fee is None else parse_amount(self.max_fee, "max_fee"),
        )

    def to_wishes(self) -> Wishes:
        """What is asked of providers.  Raises ValidationFailed."""
        return Wishes(
            sort=Sort(self.sort),
            min_stake=parse_amount(self.min_stake, "min_stake"),
            allow=frozenset(map(peer_id, self.providers.only)),
            deny=frozenset(map(peer_id, self.providers.ignore)),
        )


class InferenceBody(AskedBody, forbid_unknown_fields=True):
    """What to run on what, and by whom, or whether only to tell by whom it would be."""

    dry_run: Annotated[
        bool, Meta(description="Only tell who would serve, in order, at what fee; nothing is run.")
    ] = False


class UsageBody(Struct):
    """What the work amounted to."""

    input_tokens: int
    output_tokens: int
    compute_ms: float


class SkippedBody(Struct):
    """A provider that did not serve: not wished for, or tried in vain."""

    peer: str
    code: Annotated[int, Meta(description="A row of the table of errors.")]
    reason: str

    @classmethod
    def of(cls, skipped: Sequence[Skipped]) -> list[Self]:
        return [cls(each.peer_id, each.code, each.reason) for each in skipped]


class SignedBody(Struct):
    """What the provider has signed for the answer, to be checked offline by anyone."""

    id: Annotated[str, Meta(description="The digest that is signed, in hex.")]
    provider: Annotated[str, Meta(description="Address of the provider's account.")]
    price: Annotated[Mesh, Meta(description="What the answer cost.")]
    chain: Annotated[int, Meta(description="Chain id of the ledger that it counts on.")]
    contract: Annotated[str, Meta(description="The ledger's contract, or its issuer where it has none.")]
    signed: Annotated[str, Meta(description="The receipt as signed, packed, in hex.")]

    @classmethod
    def of(cls, signed: SignedReceipt, chain: Chain) -> Self:
        receipt = signed.receipt
        return cls(
            receipt_digest(receipt, chain).hex(),
            address_text(receipt.provider),
            mesh(receipt.charge.price),
            chain.id,
            address_text(chain.contract),
            signed.packed.hex(),
        )


class ResultBody(Struct):
    """Who served which model, what it said, what it cost, who was passed over and why."""

    request_id: str
    model: str
    model_id: str
    output: Annotated[
        dict[str, Any], Meta(description="Values by name; a tensor is a nested list, NaN is null.")
    ]
    fee: Mesh
    provider: str
    latency_ms: float
    usage: UsageBody
    attempts: int
    skipped: list[SkippedBody]
    receipt: SignedBody | None = None

    @classmethod
    def of(cls, result: Result) -> Self:
        usage, signed = result.usage, None
        if result.receipt is not None and result.chain is not None:
            signed = SignedBody.of(result.receipt, result.chain)
        return cls(
            request_id=result.request_id,
            model=result.model,
            model_id=result.model_id,
            output=_plain(result.output),
            fee=mesh(result.fee),
            provider=result.provider,
            latency_ms=round(result.latency_ms, 3),
            usage=UsageBody(usage.input_tokens, usage.output_tokens, round(usage.compute_ms, 3)),
            attempts=result.attempts,
            skipped=SkippedBody.of(result.skipped),
            receipt=signed,
        )


class CandidateBody(Struct):
    """Someone who would be asked."""

    provider: str
    fee: Mesh
    stake: Mesh

    @classmethod
    def of(cls, candidate: Candidate) -> Self:
        return cls(candidate.peer_id, mesh(candidate.fee), mesh(candidate.stake))


class PlanBody(Struct):
    """What a dry run tells: the most that the request would cost at whom, the first to be asked first."""

    request_id: str
    model: str
    model_id: str
    fee: Annotated[Mesh, Meta(description="What the first provider asks, in MESH.")]
    providers: list[CandidateBody]
    skipped: list[SkippedBody]

    @classmethod
    def of(cls, id: RequestId, plan: Plan) -> Self:
        first = plan.candidates[0]
        return cls(
            request_id=id,
            model=first.offer.card.name,
            model_id=first.offer.model_id,
            fee=mesh(first.fee),
            providers=[CandidateBody.of(candidate) for candidate in plan.candidates],
            skipped=SkippedBody.of(plan.skipped),
        )


decode_inference = msgspec.json.Decoder(InferenceBody).decode


def _plain(output: Mapping[str, Value]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in output.items()}
