"""GET /api/v1/models: the offers this node knows of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quart import Response

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import PeerId
from llmesh.gateway.request import Request
from llmesh.gateway.schema import ModelBody, ModelsBody, ModelsQuery, decode_query, encode, mesh

__all__ = ["Catalogue", "Listing", "get_models"]


@dataclass(frozen=True, slots=True)
class Listing:
    """An offer with its provider and the stake that stands behind it."""

    offer: Offer
    provider: PeerId
    stake: Amount


class Catalogue(Protocol):
    """Where offers are looked up."""

    async def search(self, name: str, max_fee: Amount | None, limit: int) -> Sequence[Listing]:
        """At most `limit` offers whose name contains `name` and that cost at most `max_fee`."""


async def get_models(catalogue: Catalogue, request: Request) -> Response:
    """List offers."""
    query = decode_query(request.query_string, ModelsQuery)
    listings = await catalogue.search(query.name, query.most, query.limit)
    body = ModelsBody([_render(listing) for listing in listings])
    return Response(encode(body), content_type="application/json")


def _render(listing: Listing) -> ModelBody:
    offer = listing.offer
    return ModelBody(
        name=offer.card.name,
        version=offer.card.version,
        model_id=offer.model_id,
        task=offer.task,
        fee=mesh(offer.fee),
        provider=listing.provider,
        stake=mesh(listing.stake),
        description=offer.card.description,
        licence=offer.card.licence,
    )
