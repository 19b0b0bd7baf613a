"""What the host remembers of peers, within bounds.

libp2p's own store forgets its owner's key once it knows a thousand peers, compares each address that it is
told with all others, and fails for good at a signed record that has run out.
"""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.crypto.keys import PublicKey
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr  # type: ignore[import-untyped]

__all__ = ["BoundedPeerStore"]

MAX_PEERS = 2000
# What is remembered of each; the newest addresses stay.
MAX_ADDRESSES = 8
MAX_PROTOCOLS = 64
MAX_PROTOCOL = 128
# Answers of the hash table carry up to 40 signed records, and all must fit one message.
MAX_RECORD_BYTES = 1024


class BoundedPeerStore(PeerStore):
    """At most 2000 peers; whoever was not heard of for longest goes first, the owner `me` never."""

    def __init__(self, me: ID) -> None:
        super().__init__(max_peers=MAX_PEERS)
        self._me = me

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Called by libp2p for whatever anybody says of a peer; `ttl` in seconds, 0 for ever."""
        data = self.peer_data_map.pop(peer_id, None) or PeerData()
        data.addrs = list(dict.fromkeys([*addrs[:MAX_ADDRESSES], *data.addrs]))[:MAX_ADDRESSES]
        self.peer_data_map[peer_id] = data
        super().add_addrs(peer_id, (), ttl)

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """Called by libp2p for what a peer says it speaks, in place of what it said before."""
        spoken = [each for each in protocols[:MAX_PROTOCOLS] if len(each) <= MAX_PROTOCOL]
        self.set_protocols(peer_id, spoken)
        self._enforce_peer_limit()

    def add_pubkey(self, peer_id: ID, pubkey: PublicKey) -> None:
        """Called by libp2p.  Raises PeerStoreError for a key that is not the peer's."""
        super().add_pubkey(peer_id, pubkey)
        self._enforce_peer_limit()

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """Called by libp2p: False for a record to refuse; an overlong one is no fault, and not kept."""
        if len(envelope.marshal_envelope()) > MAX_RECORD_BYTES:
            return True
        return super().consume_peer_record(envelope, ttl)

    def maybe_delete_peer_record(self, peer_id: ID) -> None:
        """Called by libp2p before it hands a record out."""
        data = self.peer_data_map.get(peer_id)
        if data is None or data.is_expired() or not data.get_addrs():
            self.peer_record_map.pop(peer_id, None)

    def _enforce_peer_limit(self) -> None:
        while len(self.peer_data_map) > self.max_peers:
            oldest = next(peer for peer in self.peer_data_map if peer != self._me)
            self.clear_peerdata(oldest)
