"""Kademlia as a mailbox and a way in: a thin, bounded face on libp2p's KadDHT.

libp2p answers reads from its local copy without looking further, so a fresh read sets the copy
aside and puts the better of the two back.  One lookup runs at a time: several at once in a young
network stall one another for 10 s.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator

from llmesh.core.ids import PeerId, peer_id
from llmesh.errors import NodeUnreachable, ValidationFailed
from llmesh.net.host import PeerAddress
from llmesh.net.libp2p.addresses import well_formed
from llmesh.net.libp2p.answering import Answering
from llmesh.net.libp2p.dialer import Dialer
from llmesh.net.libp2p.guard import contained
from llmesh.net.libp2p.upkeep import Upkeep

__all__ = ["Judge", "KademliaDht", "value_key"]

Judge: TypeAlias = Callable[[bytes], "tuple[PeerId, int] | None"]
"""Whose announcement the bytes are, and its sequence number; None for anything not valid now."""

NAMESPACE = "llm"
MAX_RECORD_BYTES = 16 * 1024
MAX_FOUND = 20
CALL_SECONDS = 8.0
# A holder drops what exceeds 10 in 10 s of one sender, and says nothing.
PROVIDE_SECONDS = 1.0
JITTER_SECONDS = 0.05
# Identify must have run on both sides, or the seed does not know that we exist.
IDENTIFY_SECONDS = 1.0
SETTLE_SECONDS = 0.1
# Answers after which a fresh read stops asking; without, it asks the whole network.
QUORUM = 5
# What strangers may store with us: 64 MiB of announcements.
MAX_VALUES = 4096
# A young table is filled soon after joining, an old one kept fresh; each time costs half a megabyte
# in a network of 60, most of it handshakes.
REFRESH_SECONDS = (5.0, 30.0, 3600.0)


class KademliaDht:
    """See `llmesh.net.host.Dht`.  Each call waits its turn, then takes at most 8 s."""

    def __init__(self, host: BasicHost, dialer: Dialer, upkeep: Upkeep, judge: Judge) -> None:
        self._me = host.get_id()
        self._host = host
        self._dialer = dialer
        self._upkeep = upkeep
        self._validator = _Announcements(judge, self._has_room)
        self._kad = KadDHT(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: self._validator}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            max_peers_per_subnet=0,
        )
        self._answering = Answering(self._kad)
        host.set_stream_handler(PROTOCOL_ID, self._answering.answer)
        self._turn = trio.Lock()
        self._next_provide = 0.0

    async def run(self) -> None:
        """Refresh the routing table and forget what expired, until cancelled."""
        waits = list(REFRESH_SECONDS)
        while True:
            wait = waits.pop(0) if len(waits) > 1 else waits[0]
            await trio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 -- spreads load, no secret
            async with self._lookup():
                await self._kad.peer_routing.refresh_routing_table()
            self._forget()

    async def join(self, seeds: Iterable[PeerAddress] = ()) -> int:
        """Enter the network through the seeds and the peers already connected.

        Returns how many peers the routing table holds then; 0 when nobody could be reached.
        """
        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(self._meet, seed)
        for connected in self._host.get_connected_peers():
            await self._identified(connected)
        async with self._lookup():
            await self._kad.peer_routing.find_closest_peers_network(self._me.to_bytes())
        return self._kad.routing_table.size()

    async def put(self, peer: PeerId, record: bytes) -> bool:
        """Store an announcement with the peers nearest its key; True once another node gives it back.

        libp2p itself does not tell: it reports success though all others refused.  Raises
        ValidationFailed for a record that nobody would take.
        """
        key = value_key(peer)
        if not self._validator.accepts(key, record):
            raise ValidationFailed(f"This is no valid announcement of peer {peer} of at most 16 KiB.")
        stored = None
        async with self._lookup():
            await self._kad.put_value(key, record)
            stored = await self._read(key, quorum=1)
        return stored == record

    async def get(self, peer: PeerId) -> bytes | None:
        """The newest valid announcement of `peer` that the network holds, read past local copies."""
        key = value_key(peer)
        fresh = None
        async with self._lookup():
            fresh = await self._read(key, quorum=QUORUM)
        held = self._kad.value_store.get(key.encode())
        return self._validator.best(key, [held.value if held else None, fresh])

    async def provide(self, key: bytes) -> bool:
        """Say that this node is an entry point for a 32-byte key; at most one call a second."""
        async with self._lookup():
            await trio.sleep_until(self._next_provide)
            self._next_provide = trio.current_time() + PROVIDE_SECONDS
            return await self._kad.provide(key.hex())
        return False

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        """Entry points of a 32-byte key: unverified, at most 20, without duplicates."""
        store = self._kad.provider_store
        held = store.providers.pop(key, {})
        try:
            async with self._lookup():
                # Counted with duplicates: each of 20 holders may name the same 20.
                await self._kad.find_providers(key.hex(), count=MAX_FOUND * MAX_FOUND)
        finally:
            found = store.providers.get(key, {}) | held
            if held:
                store.providers[key] = dict(list((held | found).items())[:MAX_FOUND])
        entries = (_entry(each.provider_info) for each in found.values() if each.peer_id != self._me)
        return tuple(entry for entry in entries if entry is not None)[:MAX_FOUND]

    @asynccontextmanager
    async def _lookup(self) -> AsyncIterator[None]:
        """One lookup at a time, for at most 8 s; then close the connections it opened.

        Ends quietly when time is up or the network misbehaves: the caller keeps what it has by then.
        """
        async with self._turn:
            await trio.sleep(random.uniform(0, JITTER_SECONDS))  # noqa: S311 -- spreads load, no secret
            with contained("A lookup"), trio.move_on_after(CALL_SECONDS):
                yield
            await self._upkeep.prune()

    async def _read(self, key: str, quorum: int) -> bytes | None:
        """Ask the network only; the local copy is back afterwards, whatever happens."""
        store, name = self._kad.value_store, key.encode()
        held = store.store.pop(name, None)
        try:
            value = await self._kad.get_value(key, quorum=quorum)
            return None if value is None else bytes(value)
        finally:
            fresh = store.store.get(name)
            if held is not None and not self._replaces(key, held[0].value, fresh and fresh[0].value):
                store.store[name] = held

    def _replaces(self, key: str, held: bytes, fresh: bytes | None) -> bool:
        return fresh is not None and self._validator.best(key, [held, fresh]) == fresh

    async def _meet(self, seed: PeerAddress) -> None:
        try:
            async with self._dialer.turn(seed.peer_id):
                await self._dialer.connect(seed.peer_id, seed.addresses)
        except NodeUnreachable:
            return

    async def _identified(self, peer: ID) -> None:
        store = self._host.get_peerstore()
        with trio.move_on_after(IDENTIFY_SECONDS):
            while not (store.has_peer(peer) and store.get_protocols(peer)):  # noqa: ASYNC110 -- no event
                await trio.sleep(SETTLE_SECONDS / 10)
            await trio.sleep(SETTLE_SECONDS)

    def _has_room(self, key: str) -> bool:
        values = self._kad.value_store.store
        return len(values) < MAX_VALUES or key.encode() in values

    def _forget(self) -> None:
        self._kad.value_store.cleanup_expired()
        self._kad.provider_store.cleanup_expired()


class _Announcements(Validator):
    """What this node stores and believes under /llm/: valid announcements under their peer's key."""

    def __init__(self, judge: Judge, has_room: Callable[[str], bool]) -> None:
        self._judge = judge
        self._has_room = has_room

    def validate(self, key: str, value: bytes) -> None:
        """Called by libp2p.  Raises ValueError for what must not be stored."""
        if not self.accepts(key, value):
            raise ValueError("not a valid announcement for this key")
        if not self._has_room(key):
            raise ValueError("this node stores no more announcements")

    def select(self, key: str, values: list[bytes]) -> int:
        """Called by libp2p: the index of the highest sequence number, the last one on ties.

        With the first on ties, a holder would refuse a renewal and let the record grow old.
        """
        ranks = [self._rank(key, value) for value in values]
        return max(range(len(values)), key=lambda index: (ranks[index], index))

    def accepts(self, key: str, value: bytes) -> bool:
        """Whether the value is a valid announcement of the peer whose key this is."""
        return self._rank(key, value) >= 0

    def best(self, key: str, values: Iterable[bytes | None]) -> bytes | None:
        """The newest valid one of several."""
        valid = [value for value in values if value is not None and self.accepts(key, value)]
        return valid[self.select(key, valid)] if valid else None

    def _rank(self, key: str, value: bytes) -> int:
        """The sequence number of a valid announcement, else -1."""
        if len(value) > MAX_RECORD_BYTES:
            return -1
        with contained("The judge of announcements"):
            verdict = self._judge(value)
            if verdict is not None and value_key(verdict[0]) == key:
                return verdict[1]
        return -1


def value_key(peer: PeerId) -> str:
    """Where a peer's announcement is stored.  Nodes refuse keys of more than 50 bytes; this has 37."""
    digest = hashlib.sha256(peer.encode()).digest()[:20]
    return f"/{NAMESPACE}/{base64.b32encode(digest).decode().lower()}"


def _entry(found: PeerInfo) -> PeerAddress | None:
    """An entry point whose peer id and addresses are well formed; its word is all that stands for it."""
    addresses = well_formed(str(each).partition("/p2p/")[0] for each in found.addrs)
    try:
        return PeerAddress(peer_id(str(found.peer_id)), addresses) if addresses else None
    except ValidationFailed:
        return None
