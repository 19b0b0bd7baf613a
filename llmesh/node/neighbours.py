"""The other nodes, as this one sees them."""

from __future__ import annotations

from llmesh.core.announcement import Announcement
from llmesh.core.ids import PeerId
from llmesh.gateway.peers import PeerState, PeerView
from llmesh.mesh.discovery import Discovery
from llmesh.mesh.market import Market

__all__ = ["neighbours"]


def neighbours(own: PeerId, discovery: Discovery, market: Market, limit: int) -> list[PeerView]:
    """At most so many other nodes, those in a session with this one first."""

    def seen(state: PeerState, id: PeerId, latency: float | None) -> PeerView:
        announced = said.get(id)
        if announced is None:
            return PeerView(id, state, latency=latency)
        counted, foreign = market.counted(announced), market.is_foreign(announced)
        offers = len(counted.offers)
        return PeerView(id, state, counted.addresses, latency, offers, counted.stake, foreign)

    said: dict[PeerId, Announcement] = {
        each.peer_id: each for each in discovery.announcements() if each.peer_id != own
    }
    live = {session.peer_id: session for session in discovery.sessions.live()}
    near = [seen("connected", id, session.round_trip) for id, session in live.items()]
    far = [seen("down" if discovery.is_down(id) else "known", id, None) for id in said if id not in live]
    return [*near, *far][:limit]
