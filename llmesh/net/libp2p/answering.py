"""Answering the hash table's queries, so that no peer's take all others' place, memory or time.

libp2p answers 12 streams at a time, whoever they are of and for as long as they stay open; and all queries of
newcomers wait while the oldest of a full bucket takes its time to answer a ping.
"""

from __future__ import annotations

import math
from collections import Counter

import trio
from libp2p.abc import INetStream
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import KBucket
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from llmesh.net.libp2p.guard import end_stream
from llmesh.net.libp2p.peerstore import MAX_ADDRESSES

__all__ = ["Answering"]

# libp2p takes 4 MiB and compares each peer of an answer with all its others, for half an hour then.
MAX_MESSAGE_BYTES = 64 * 1024
for _module in (kad_dht, peer_routing, provider_store, value_store):
    vars(_module)["MAX_DHT_MESSAGE_SIZE"] = MAX_MESSAGE_BYTES

# A query is one stream; a lookup asks each peer once.
MAX_QUERIES_PER_PEER = 8
QUERY_SECONDS = 10.0
# Keys with entry points, at most 20 each, that others may store with us.
MAX_PROVIDED_KEYS = 4096
# Enough to dial and to ping from afar; libp2p gives more than 10 s, in which a whole lookup would be over.
PING_SECONDS = 2.0

_ping = KBucket._ping_peer


async def _ping_soon(bucket: KBucket, peer: ID) -> bool:
    with trio.move_on_after(PING_SECONDS):
        return await _ping(bucket, peer)
    return False


KBucket._ping_peer = _ping_soon  # type: ignore[method-assign, assignment]


class Answering:
    """The stream handler of a hash table; what it stores of entry points is bounded too."""

    def __init__(self, kad: KadDHT) -> None:
        self._kad = kad
        self._asking: Counter[ID] = Counter()
        kad.provider_store = _Providers(kad.host, kad.peer_routing)
        kad._inbound_limiter.total_tokens = math.inf  # each peer has a limit of its own instead

    async def answer(self, stream: INetStream) -> None:
        """Serve one stream for at most 10 s; a peer's ninth at a time is refused."""
        peer = stream.muxed_conn.peer_id
        if self._asking[peer] >= MAX_QUERIES_PER_PEER:
            await end_stream(stream)
            return
        self._asking[peer] += 1
        try:
            with trio.move_on_after(QUERY_SECONDS):
                await self._kad.handle_stream(stream)
                return
            await end_stream(stream)
        finally:
            self._asking[peer] -= 1
            if not self._asking[peer]:
                del self._asking[peer]


class _Providers(ProviderStore):
    """Of too many keys the oldest goes first."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Called by libp2p for each entry point that a peer says it is."""
        super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[:MAX_ADDRESSES]))
        while len(self.providers) > MAX_PROVIDED_KEYS:
            del self.providers[next(iter(self.providers))]
