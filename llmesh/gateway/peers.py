"""GET /api/v1/peers: who else is on the mesh, as this node sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct
from quart import Response

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.core.pricing import FREE
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import Mesh, decode_query, encode, mesh

__all__ = ["PeerState", "PeerView", "Peers", "peers_routes"]

PeerState = Literal["connected", "known", "down"]
"""In a session with us; announced and not known to be gone; lost and not heard of since."""
MAX_PEERS = 1000


@dataclass(frozen=True, slots=True)
class PeerView:
    """One other node: `latency` is the seconds of the last ping, None where there was none.

    `models` counts the offers, `stake` is what counts of what it announced; 0 for one that announces
    nothing.  `foreign` is whether it belongs to another swarm; None where it has not said.
    """

    peer_id: PeerId
    state: PeerState
    addresses: tuple[str, ...] = ()
    latency: float | None = None
    models: int = 0
    stake: Amount = FREE
    foreign: bool | None = None


class Peers(Protocol):
    """Who knows the other nodes."""

    def peers(self, limit: int) -> Sequence[PeerView]:
        """At most so many, those in a session first."""


class PeersQuery(Struct, forbid_unknown_fields=True):
    """How many are wanted."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PEERS, description="How many at most.")] = 100


class PeerBody(Struct):
    """One other node, as this one sees it."""

    peer_id: str
    state: Annotated[
        PeerState, Meta(description="In a session with this node, known from its announcement, or lost.")
    ]
    addresses: Sequence[str]
    latency_ms: Annotated[float | None, Meta(description="Of the last ping; null where there was none.")]
    models: Annotated[int, Meta(description="How many it offers.")]
    stake: Mesh
    foreign: Annotated[bool | None, Meta(description="Of another swarm; null where it has not said.")]


class PeersBody(Struct):
    """Other nodes."""

    peers: list[PeerBody]


def peers_routes(peers: Peers) -> tuple[Route, ...]:
    """The route of the other nodes."""
    return (
        Route("GET", "/api/v1/peers", Scope.READ, partial(get_peers, peers),
              "Who else is on the mesh, as this node sees it.", answers=(PeersBody,), query=PeersQuery),
    )  # fmt: skip


async def get_peers(peers: Peers, request: Request) -> Response:
    """List other nodes."""
    query = decode_query(request.query_string, PeersQuery)
    body = PeersBody([_render(peer) for peer in peers.peers(query.limit)])
    return Response(encode(body), content_type="application/json")


def _render(peer: PeerView) -> PeerBody:
    latency = None if peer.latency is None else round(peer.latency * 1000, 3)
    stake = mesh(peer.stake)
    return PeerBody(peer.peer_id, peer.state, peer.addresses, latency, peer.models, stake, peer.foreign)
