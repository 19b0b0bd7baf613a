"""The network in memory: a Host whose links are queues, in virtual time, repeatable from one seed.

A link is an ordered stream as over TCP: loss costs a retransmission's delay, never a byte, and what
is sent during a partition arrives when it heals.  `kill` breaks links at once, as the kernel does
for a process that dies; `freeze` lets them hang, as for one that is stopped or unplugged.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, NodeUnreachable
from llmesh.net.host import Accept, PeerAddress

__all__ = ["MemoryHost", "MemoryNetwork"]

BUFFER = 4 << 20
"""Bytes under way in one direction of a link; the writer waits, at most `STALLED` seconds."""

STALLED = 5.0
READ = 256 << 10
WRITE = 131_026
RETRANSMISSION = 0.2
DIALLING = 3.0
HOLDERS = 20
PROVIDERS = 20


@dataclass(frozen=True, slots=True)
class Weather:
    """Seconds one way, uniform jitter on top, and the share of writes that are lost once."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0


class MemoryNetwork:
    """Where in-memory hosts find each other, and the hand that breaks things."""

    def __init__(self, seed: int = 0, *, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0) -> None:
        self.weather = Weather(delay, jitter, loss)
        self.hosts: dict[PeerId, MemoryHost] = {}
        self._random = random.Random(seed)  # noqa: S311  (repeatable weather, no secret)
        self._cut: set[frozenset[PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._numbers = 0

    @asynccontextmanager
    async def host(self, peer: PeerId, address: str | None = None) -> AsyncIterator[MemoryHost]:
        """Bring a node up; leaving breaks its links.  A peer that was killed may come up again."""
        number = self.tick()
        address = address or f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/4001"
        async with trio.open_nursery() as nursery:
            host = MemoryHost(self, peer, address, nursery)
            self._frozen.discard(peer)
            self.hosts[peer] = host
            try:
                yield host
            finally:
                host.stop()
                if self.hosts.get(peer) is host:
                    del self.hosts[peer]
            nursery.cancel_scope.cancel()

    def kill(self, peer: PeerId) -> None:
        """SIGKILL: every link of the peer breaks and nobody reaches it any more."""
        self.hosts.pop(peer).stop()

    def freeze(self, peer: PeerId) -> None:
        """SIGSTOP: nothing comes from the peer or gets through to it, until `thaw`."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        """SIGCONT."""
        self._frozen.discard(peer)
        self._look_again()

    def partition(self, a: PeerId, b: PeerId) -> None:
        """Let nothing through between two peers."""
        self._cut.add(frozenset((a, b)))

    def heal(self) -> None:
        """End all partitions; what was sent meanwhile arrives."""
        self._cut.clear()
        self._look_again()

    def passes(self, a: PeerId, b: PeerId) -> bool:
        """Whether anything gets through between the two."""
        return not self._frozen & {a, b} and frozenset((a, b)) not in self._cut

    def travel(self) -> float:
        """Seconds that the next write takes."""
        weather = self.weather
        lost = weather.loss > 0 and self._random.random() < weather.loss
        return (
            weather.delay
            + (self._random.uniform(0, weather.jitter) if weather.jitter else 0.0)
            + (RETRANSMISSION + 2 * weather.delay if lost else 0.0)
        )

    def nearest(self, asker: PeerId, key: bytes) -> list[MemoryHost]:
        """The hosts that hold a key of the hash table, as far as the asker reaches them."""
        wanted = int.from_bytes(hashlib.sha256(key).digest(), "big")
        reached = [host for peer, host in self.hosts.items() if self.passes(asker, peer)]
        return sorted(reached, key=lambda host: host.position ^ wanted)[:HOLDERS]

    def at(self, address: str) -> MemoryHost | None:
        """Who listens there."""
        return next((host for host in self.hosts.values() if address in host.addresses), None)

    def tick(self) -> int:
        """A number higher than all before."""
        self._numbers += 1
        return self._numbers

    def _look_again(self) -> None:
        for host in self.hosts.values():
            for link in host.links:
                link.look_again()


class _Pipe:
    """One direction of a link."""

    def __init__(self, network: MemoryNetwork, source: PeerId, target: PeerId) -> None:
        self._network, self._source, self._target = network, source, target
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._last = 0.0
        self._size = 0
        self._closed_by: PeerId | None = None
        self._changed = trio.Event()

    def change(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    def close(self, by: PeerId) -> None:
        """The other end hears of it when something gets through."""
        self._closed_by = self._closed_by or by
        self.change()

    async def put(self, data: bytes) -> None:
        """Send off; waits while too much is under way.  Raises NetworkError."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(STALLED):
            while self._size >= BUFFER and not self._closed_for(self._source):
                await self._changed.wait()
        if self._closed_for(self._source):
            raise NetworkError("The link is closed.")
        if self._size >= BUFFER:
            raise NetworkError(f"The peer has read nothing for {STALLED:.0f} s.")
        self._last = max(self._last, trio.current_time() + self._network.travel())
        self._under_way.append((self._last, data))
        self._size += len(data)
        self.change()

    async def get(self) -> bytes:
        """What has arrived, at least a byte.  Raises NetworkError once the link is closed."""
        await trio.lowlevel.checkpoint()
        while not self._closed_for(self._target):
            if data := self._arrived():
                return data
            coming = self._under_way and self._passes()
            with trio.move_on_at(self._under_way[0][0] if coming else math.inf):
                await self._changed.wait()
        raise NetworkError("The link is closed.")

    def _passes(self) -> bool:
        return self._network.passes(self._source, self._target)

    def _closed_for(self, end: PeerId) -> bool:
        return self._closed_by is not None and (self._closed_by == end or self._passes())

    def _arrived(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._under_way and size + len(self._under_way[0][1]) <= READ and self._first_is_here():
            parts.append(self._under_way.popleft()[1])
            size += len(parts[-1])
        if size:
            self._size -= size
            self.change()
        return b"".join(parts)

    def _first_is_here(self) -> bool:
        return self._under_way[0][0] <= trio.current_time() and self._passes()


class MemoryLink:
    """One end of a link."""

    def __init__(
        self, home: MemoryHost, peer: PeerId, remote_address: str, pipes: tuple[_Pipe, _Pipe]
    ) -> None:
        """The end at `home`; `pipes` go out and come in."""
        self.peer_id = peer
        self.remote_address = remote_address
        self.initiator = False
        self._home = home
        self._outgoing, self._incoming = pipes
        home.links.add(self)

    async def read(self) -> bytes:
        """See `Link`."""
        return await self._incoming.get()

    async def write(self, data: bytes) -> None:
        """See `Link`."""
        if len(data) > WRITE:
            raise ValueError(f"a write has at most {WRITE} bytes")
        with trio.CancelScope(shield=True):
            await self._outgoing.put(data)

    async def aclose(self) -> None:
        """See `Link`; what is under way is lost."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """The same at once."""
        self._outgoing.close(self._home.peer_id)
        self._incoming.close(self._home.peer_id)
        self._home.links.discard(self)

    def look_again(self) -> None:
        """The network has changed."""
        self._incoming.change()
        self._outgoing.change()


class MemoryHost:
    """A node's endpoint; made by `MemoryNetwork.host`."""

    def __init__(self, network: MemoryNetwork, peer: PeerId, address: str, nursery: trio.Nursery) -> None:
        self.peer_id = peer
        self.addresses = (address,)
        self.dht = MemoryDht(network, self)
        self.position = int.from_bytes(hashlib.sha256(peer.encode()).digest(), "big")
        self.links: set[MemoryLink] = set()
        self._network = network
        self._nursery = nursery
        self._accept: Accept | None = None
        self._stopped = False

    def serve(self, accept: Accept) -> None:
        """See `Host`."""
        if self._accept is not None:
            raise RuntimeError("serve is called once")
        self._accept = accept

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> MemoryLink:
        """See `Host`; an address that does not answer takes three seconds."""
        for address in addresses:
            with trio.move_on_after(DIALLING):
                await trio.sleep(2 * self._network.travel())
                if (link := await self._try(peer, address)) is not None:
                    return link
        await trio.lowlevel.checkpoint()
        raise NodeUnreachable(f"{peer} does not answer at {', '.join(addresses) or 'any address'}.")

    async def reaches(self, peer: PeerId, address: str) -> bool:
        """See `Host`."""
        await trio.sleep(2 * self._network.travel())
        host = self._network.at(address)
        return host is not None and host.peer_id == peer and self._network.passes(self.peer_id, peer)

    async def hang_up(self, peer: PeerId) -> None:
        """See `Host`."""
        for link in [link for link in self.links if link.peer_id == peer]:
            await link.aclose()

    def stop(self) -> None:
        """Break every link and answer nobody from now on."""
        self._stopped = True
        for link in list(self.links):
            link.close()

    async def _try(self, peer: PeerId, address: str) -> MemoryLink | None:
        """A link, None if refused; hangs where nothing gets through."""
        host = self._network.at(address)
        if host is not None and not self._network.passes(self.peer_id, host.peer_id):
            await trio.sleep_forever()
        if self._stopped or host is None or host.peer_id != peer or host._accept is None:
            return None
        there, back = _Pipe(self._network, self.peer_id, peer), _Pipe(self._network, peer, self.peer_id)
        ours = MemoryLink(self, peer, address, (there, back))
        ours.initiator = True
        theirs = MemoryLink(host, self.peer_id, self.addresses[0], (back, there))
        host._nursery.start_soon(host._welcome, theirs, host._accept)
        return ours

    async def _welcome(self, link: MemoryLink, accept: Accept) -> None:
        try:
            await accept(link)
        finally:
            link.close()


@dataclass(slots=True)
class _Shelf:
    """What one node holds of the hash table; a record with its age."""

    records: dict[PeerId, tuple[int, bytes]] = field(default_factory=dict)
    providers: dict[bytes, dict[PeerId, PeerAddress]] = field(default_factory=dict)


class MemoryDht:
    """The hash table: each key lies with the nearest hosts and dies with them.

    Nothing expires and nothing is validated; of two records the one put later is the newer.
    """

    def __init__(self, network: MemoryNetwork, host: MemoryHost) -> None:
        self._network = network
        self._host = host
        self.shelf = _Shelf()

    async def put(self, peer: PeerId, record: bytes) -> bool:
        """See `Dht`."""
        holders = await self._look_up(peer.encode())
        age = self._network.tick()
        for holder in holders:
            holder.dht.shelf.records[peer] = (age, record)
        return bool(holders)

    async def get(self, peer: PeerId) -> bytes | None:
        """See `Dht`."""
        holders = await self._look_up(peer.encode())
        records = [holder.dht.shelf.records[peer] for holder in holders if peer in holder.dht.shelf.records]
        return max(records)[1] if records else None

    async def provide(self, key: bytes) -> bool:
        """See `Dht`; a holder keeps the first twenty of a key."""
        holders = await self._look_up(key)
        for holder in holders:
            providers = holder.dht.shelf.providers.setdefault(key, {})
            if self._host.peer_id in providers or len(providers) < PROVIDERS:
                providers[self._host.peer_id] = PeerAddress(self._host.peer_id, self._host.addresses)
        return bool(holders)

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        """See `Dht`."""
        found: dict[PeerId, PeerAddress] = {}
        for holder in await self._look_up(key):
            found.update(holder.dht.shelf.providers.get(key, {}))
        return tuple(found.values())[:PROVIDERS]

    async def _look_up(self, key: bytes) -> list[MemoryHost]:
        """The holders of a key, after two round trips."""
        await trio.sleep(4 * self._network.travel())
        return self._network.nearest(self._host.peer_id, key)
