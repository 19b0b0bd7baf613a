"""Bringing a model of the mesh to this node, by the owner's socket; `status` tells how far."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Protocol

from msgspec import Meta, Struct, json
from quart import Response

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId
from llmesh.core.reference import ModelRef
from llmesh.errors import (
    InsufficientStake,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    NodeUnreachable,
    TooLarge,
    ValidationFailed,
)
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, encode, parse_amount
from llmesh.mesh.download import Progress, Report

__all__ = ["Fetching", "fetch_routes"]


class Fetching(Protocol):
    """Who brings models."""

    async def fetch(self, ref: ModelRef, report: Report) -> ModelId:
        """Bring one into the store, verified."""

    async def replicate(self, ref: ModelRef, fee: Amount | None, report: Report) -> ModelId:
        """Bring one and serve it too, without a fee at that of its offer."""


class FetchBody(Struct, forbid_unknown_fields=True):
    """Which model is wanted, and whether it is to be served here too."""

    model: Annotated[
        str, Meta(min_length=1, max_length=300, description="`name`, `name:version` or `name@id`.")
    ]
    replicate: Annotated[bool, Meta(description="Whether to serve it here too.")] = False
    fee: Annotated[
        float | str | None, Meta(description="MESH for one inference here; null takes that of its offer.")
    ] = None

    @property
    def price(self) -> Amount | None:
        """`fee` as money.  Raises ValidationFailed, also for a fee of a model that is not to be served."""
        if self.fee is not None and not self.replicate:
            raise ValidationFailed("fee: only a model that is served here too has one; ask to replicate it.")
        return None if self.fee is None else parse_amount(self.fee, "fee")


class FetchedBody(Struct):
    """A model whose files are here now."""

    model_id: str


def fetch_routes(fetching: Fetching) -> tuple[Route, ...]:
    """The route by which models come; it needs a node that runs."""
    return (
        Route("POST", "/owner/fetch", Scope.OWNER, partial(post_fetch, fetching),
              "Bring a model of the mesh to this node.", answers=(FetchedBody,), body=FetchBody,
              errors=(ModelNotFound, NodeUnreachable, NetworkError, ModelFailed, InsufficientStake,
                      TooLarge)),
    )  # fmt: skip


async def post_fetch(fetching: Fetching, request: Request) -> Response:
    """Bring a model; a client that hangs up stops it, and the next try goes on where it ended."""
    body = decode(await request.json_bytes(), _decode)
    ref, fee = ModelRef.parse(body.model), body.price
    if body.replicate:
        model = await fetching.replicate(ref, fee, _unheard)
    else:
        model = await fetching.fetch(ref, _unheard)
    return Response(encode(FetchedBody(model)), content_type="application/json")


def _unheard(progress: Progress) -> None:
    """The node itself tells how far it is."""


_decode = json.Decoder(FetchBody).decode
