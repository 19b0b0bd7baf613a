"""GET /api/v1/models: the offers this node knows of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quart import Response

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId
from llmesh.core.model import ModelInfo
from llmesh.core.reference import ModelRef
from llmesh.gateway.request import Request
from llmesh.gateway.schema import ModelBody, ModelsBody, ModelsQuery, decode_query, encode, mesh

__all__ = ["Catalogue", "get_models", "render_offer"]


class Catalogue(Protocol):
    """Where offers are looked up."""

    def info(self, model: ModelId) -> ModelInfo | None:
        """What a model of this node takes and gives; None for one of others."""

    def lookup(self, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
        """Every valid offer that the reference names, as known here and now."""

    async def search(
        self, part: str, max_fee: Amount | None, limit: int
    ) -> Sequence[tuple[Offer, Announcement]]:
        """At most `limit` valid offers whose name contains `part` and that cost at most `max_fee`."""


async def get_models(catalogue: Catalogue, request: Request) -> Response:
    """List offers."""
    query = decode_query(request.query_string, ModelsQuery)
    found = await catalogue.search(query.name, query.most, query.limit)
    body = ModelsBody([render_offer(offer, announcement) for offer, announcement in found])
    return Response(encode(body), content_type="application/json")


def render_offer(offer: Offer, announcement: Announcement) -> ModelBody:
    """One offer in JSON's shape."""
    return ModelBody(
        name=offer.card.name,
        version=offer.card.version,
        model_id=offer.model_id,
        task=offer.task,
        fee=mesh(offer.fee),
        provider=announcement.peer_id,
        stake=mesh(announcement.stake),
        description=offer.card.description,
        licence=offer.card.licence,
        variant=offer.variant,
        execution=offer.execution,
    )
