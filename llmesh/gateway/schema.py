"""The JSON shapes of the gateway, and the only place that knows them.

Requests are decoded straight into these structs, which refuse what they do not name; answers are
made from core's values.  Amounts are JSON numbers of MESH, written exactly; JSON has no NaN or
infinity, so in an output they become null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llmesh.core.amount import Amount
from llmesh.errors import MeshError, ModelFailed, ValidationFailed

__all__ = [
    "HealthBody",
    "Malformed",
    "MaxFee",
    "Mesh",
    "ModelBody",
    "ModelsBody",
    "ModelsQuery",
    "Problem",
    "StatusBody",
    "TransferBody",
    "WorkerBody",
    "decode",
    "decode_query",
    "encode",
    "mesh",
    "parse_amount",
    "problem",
    "tellable",
]

MAX_MODELS = 1000
_MAX_QUERY_FIELDS = 16
_MAX_DETAIL = 300
Mesh = Annotated[Raw, Meta(description="MESH", extra_json_schema={"type": "number", "minimum": 0})]
MaxFee = Annotated[
    int | float | str,
    Meta(description="The most one inference may cost, in MESH; a number or its decimal text."),
]
_T = TypeVar("_T", bound=Struct)


class Malformed(ValidationFailed):
    """A body that is not JSON at all; HTTP tells it from JSON that says the wrong thing."""

    http_status = 400


class ModelsQuery(Struct, forbid_unknown_fields=True):
    """Which offers are wanted."""

    name: Annotated[str, Meta(max_length=128, description="Part of the model's name.")] = ""
    max_fee: MaxFee | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_MODELS, description="How many at most.")] = 100

    @property
    def most(self) -> Amount | None:
        """`max_fee` as money.  Raises ValidationFailed."""
        return None if self.max_fee is None else parse_amount(self.max_fee, "max_fee")


class ModelBody(Struct):
    """One model at one price by one provider."""

    name: str
    version: str
    model_id: str
    task: str
    fee: Mesh
    provider: str
    stake: Mesh
    description: str
    licence: str
    variant: Annotated[str, Meta(description="The ONNX file of the bundle that runs.")]
    execution: Annotated[
        str, Meta(description="Its class of arithmetic, such as fp32-strict or int8-dynamic.")
    ]


class ModelsBody(Struct):
    """Offers this node knows of."""

    models: list[ModelBody]


class WorkerBody(Struct):
    """How one model of this node is kept."""

    model_id: str
    sandbox: Annotated[str, Meta(description="none, limits, filtered or confined.")]
    provider: Annotated[str, Meta(description="What runs the graph: cpu or cuda.")]
    batch: Annotated[int, Meta(description="Requests that may share a run.")]
    resident: Annotated[int, Meta(description="Bytes in memory; 0 while the model rests.")]
    calls: Annotated[int, Meta(description="Requests that run or wait.")]


class TransferBody(Struct):
    """A model that is being fetched."""

    model_id: str
    done: Annotated[int, Meta(description="Bytes verified and on disk.")]
    total: Annotated[int, Meta(description="Bytes in all.")]
    rate: Annotated[int, Meta(description="Bytes per second.")]
    sources: Annotated[Sequence[str], Meta(description="The peers that it comes from.")]


class SwarmBody(Struct):
    """The swarm that this node belongs to, and its account there."""

    id: Annotated[str, Meta(description="Hash of the genesis; nodes of one swarm show the same.")]
    account: Annotated[str, Meta(description="Address of this node's account.")]
    issuer: Annotated[bool, Meta(description="Whether this node is the issuer.")]
    balance: Mesh
    entries: Annotated[int, Meta(description="Entries of the ledger's log that are here.")]
    followed: Annotated[int, Meta(description="Members that give the log now; 0 for the issuer.")]
    alarm: Annotated[str, Meta(description="Why the ledger is not to be trusted; empty if it is.")]
    accused: Annotated[int, Meta(description="Providers caught cheating; the wallet tells of them.")]


class StatusBody(Struct):
    """What this node is and sees."""

    node_id: str
    version: str
    peers: int
    models: int
    stake: Mesh
    earnings: Mesh
    addresses: Annotated[Sequence[str], Meta(description="Multiaddrs where others may dial this node.")]
    reachable: Annotated[bool | None, Meta(description="Whether a peer could dial back; null while unknown.")]
    uptime: Annotated[float, Meta(description="Seconds since the start.")]
    sandbox: Annotated[str, Meta(description="How far this machine can lock models in; empty until tried.")]
    providers: Annotated[Sequence[str], Meta(description="What can run graphs here: cpu, cuda.")]
    workers: Annotated[Sequence[WorkerBody], Meta(description="The models that this node serves.")]
    transfers: Annotated[Sequence[TransferBody], Meta(description="Models being fetched from peers.")]
    swarm: SwarmBody | None


class HealthBody(Struct):
    """Health in one word."""

    status: str


class Problem(Struct):
    """An error as RFC 9457 problem details; `code` and `name` are rows of the table of errors."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    next_step: str
    code: int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    retry_after: Annotated[float, Meta(description="Seconds.")] | UnsetType = UNSET


encode = msgspec.json.Encoder().encode
"""JSON text of any of the structs above, in UTF-8."""


@contextmanager
def tellable() -> Iterator[None]:
    """Around the writing of what a model said.  Raises ModelFailed for values that cannot be written."""
    try:
        yield
    except (RecursionError, UnicodeEncodeError, OverflowError):
        raise ModelFailed(
            "The model's answer is nested too deeply, is not valid Unicode, or has a number out of range."
        ) from None


def decode(body: bytes, decoder: Callable[[bytes], _T], what: str = "body") -> _T:
    """Raises Malformed for what is not JSON, ValidationFailed (naming the field) for what is not valid."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise ValidationFailed(_sentence(error)) from None
    except UnicodeDecodeError:
        raise Malformed(f"The {what} is not valid UTF-8.") from None
    except RecursionError:
        raise Malformed(f"The {what} is nested too deeply.") from None
    except msgspec.DecodeError as error:
        raise Malformed(f"The {what} is not JSON: {_sentence(error)}") from None


def decode_query(query: bytes, shape: type[_T]) -> _T:
    """A query string as a struct of `shape`.  Raises ValidationFailed, naming the field."""
    try:
        pairs = parse_qsl(
            query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValidationFailed("The query names a field twice.")
        return msgspec.convert(fields, shape, strict=False)
    except msgspec.ValidationError as error:
        raise ValidationFailed(_sentence(error)) from None
    except UnicodeDecodeError:
        raise ValidationFailed("The query is not valid UTF-8.") from None
    except ValueError:
        raise ValidationFailed(f"The query has more than {_MAX_QUERY_FIELDS} fields.") from None


def mesh(amount: Amount) -> Raw:
    """The JSON number that is exactly this amount."""
    return Raw(str(amount).encode())


def problem(error: MeshError, status: int, request_id: str) -> Problem:
    """An error of the table as problem details."""
    return Problem(
        type=f"/docs#{error.name}",
        title=error.name,
        status=status,
        detail=error.message,
        request_id=request_id,
        next_step=error.next_step,
        code=error.code,
        name=error.name,
        retry_after=UNSET if error.retry_after is None else error.retry_after,
    )


def parse_amount(value: float | str, field: str) -> Amount:
    """MESH as a number or decimal text.  Raises ValidationFailed, naming the field."""
    try:
        return Amount.parse(value)
    except ValidationFailed as error:
        raise ValidationFailed(f"{field}: {error.message}") from None


def _sentence(error: Exception) -> str:
    text = str(error)
    if text.startswith(("Invalid enum value", "Invalid value")):
        text += "; /docs of this node lists what it may be"
    elif text.startswith("Object contains unknown field"):
        text += "; /docs of this node lists those that there are"
    return f"{text[:_MAX_DETAIL]}..." if len(text) > _MAX_DETAIL else f"{text}."
