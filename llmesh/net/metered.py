"""A link and a hash table that count what passes through them."""

from __future__ import annotations

from collections.abc import Sequence

from llmesh.core.ids import PeerId
from llmesh.core.meter import Meter, Metric
from llmesh.net.host import Dht, Link, PeerAddress

__all__ = ["MeteredDht", "MeteredLink"]


class MeteredLink:
    """A link whose bytes are counted, both ways."""

    def __init__(self, link: Link, meter: Meter) -> None:
        self.peer_id = link.peer_id
        self.remote_address = link.remote_address
        self.initiator = link.initiator
        self._link = link
        self._meter = meter

    async def read(self) -> bytes | memoryview:
        """As the link does."""
        data = await self._link.read()
        self._meter.count(Metric.SESSION_BYTES, "received", amount=len(data))
        return data

    async def write(self, data: bytes) -> None:
        """As the link does."""
        await self._link.write(data)
        self._meter.count(Metric.SESSION_BYTES, "sent", amount=len(data))

    async def aclose(self) -> None:
        """As the link does."""
        await self._link.aclose()


class MeteredDht:
    """A hash table whose calls are counted, by whether they brought anything."""

    def __init__(self, dht: Dht, meter: Meter) -> None:
        self._dht = dht
        self._meter = meter

    async def put(self, peer: PeerId, record: bytes) -> bool:
        """As the table does."""
        return self._counted("put", await self._dht.put(peer, record))

    async def get(self, peer: PeerId) -> bytes | None:
        """As the table does."""
        found = await self._dht.get(peer)
        self._counted("get", found is not None)
        return found

    async def provide(self, key: bytes) -> bool:
        """As the table does."""
        return self._counted("provide", await self._dht.provide(key))

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        """As the table does."""
        found = await self._dht.find(key)
        self._counted("find", bool(found))
        return found

    def _counted(self, call: str, well: bool) -> bool:
        self._meter.count(Metric.DHT_CALLS, call, "ok" if well else "nothing")
        return well
