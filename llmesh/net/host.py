"""The door to the network, as interfaces: Host, Link and Dht.

Two implementations: `net.libp2p` (TCP, Noise, Yamux, Kademlia) and `net.memory` (seeded delay,
loss, partition and kill in virtual time).  Both are opened by a context manager that owns their
tasks.  Addresses are multiaddr texts without the `/p2p/` part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmesh.core.ids import PeerId

__all__ = ["Accept", "Dht", "Host", "Link", "PeerAddress"]


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer and where it may be dialled."""

    peer_id: PeerId
    addresses: tuple[str, ...]


class Link(Protocol):
    """An authenticated, ordered byte stream to one peer; one task reads it, one writes it."""

    peer_id: PeerId
    remote_address: str
    initiator: bool

    async def read(self) -> bytes | memoryview:
        """Some bytes, at most 256 KiB.  Raises NetworkError at its end, clean or not.  Safe to cancel."""

    async def write(self, data: bytes) -> None:
        """Send all of at most 131 026 bytes.  Shielded and bounded in time; raises NetworkError."""

    async def aclose(self) -> None:
        """End both directions at once; a reader gets NetworkError."""


Accept: TypeAlias = Callable[[Link], Awaitable[None]]
"""Called with each link that a peer opens; the link lives until it returns."""


class Dht(Protocol):
    """Kademlia as a mailbox and a way in.  Every call is bounded in time; a miss is an empty answer."""

    async def put(self, peer: PeerId, record: bytes) -> bool:
        """Store the signed announcement of `peer` (at most 16 KiB) with the peers nearest its key."""

    async def get(self, peer: PeerId) -> bytes | None:
        """The newest valid announcement of `peer` that the network holds, read past local copies."""

    async def provide(self, key: bytes) -> bool:
        """Say that this node is an entry point for a 32-byte key."""

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        """Entry points of a 32-byte key: unverified, at most 20, without duplicates."""


class Host(Protocol):
    """This node's endpoint."""

    @property
    def peer_id(self) -> PeerId:
        """Who we are."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may dial us."""

    @property
    def dht(self) -> Dht:
        """The network's hash table."""

    def serve(self, accept: Accept) -> None:
        """Hand every link that a peer opens from now on to `accept`; called once."""

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> Link:
        """Open a link, trying each address in turn.  Raises NodeUnreachable.

        A cancelled dial leaves nothing open.
        """

    async def reaches(self, peer: PeerId, address: str) -> bool:
        """Whether a new connection to the address ends at the peer; it is closed again at once."""

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection with the peer."""
