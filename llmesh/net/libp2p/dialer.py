"""Opening connections, address by address.

libp2p's own `connect` always costs 250 ms, tries one address only, and then remembers the peer as
dead for a minute, whatever address it is found at next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from llmesh.core.ids import PeerId
from llmesh.errors import NodeUnreachable
from llmesh.net.libp2p.addresses import well_formed

__all__ = ["Dialer"]

# One address may take this long; the next one starts earlier.
DIAL_SECONDS = 3.0
HEAD_START_SECONDS = 0.25
CLOSE_SECONDS = 1.0


class Dialer:
    """Connects to peers, one dial per peer at a time."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._turns: dict[PeerId, trio.Lock] = {}

    def busy_with(self, peer: PeerId) -> bool:
        """Whether somebody is about to use a connection with the peer."""
        return peer in self._turns

    @asynccontextmanager
    async def turn(self, peer: PeerId) -> AsyncIterator[None]:
        """Wait for earlier dials to the peer: libp2p would open a connection for each."""
        lock = self._turns.setdefault(peer, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():  # a waiter would own it by now
                self._turns.pop(peer, None)

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Race the addresses, each with a head start before the next.  Raises NodeUnreachable.

        Returns at once where a connection is open.  A cancelled call leaves nothing half-open.
        """
        if self._swarm.get_connections(ID.from_string(peer)):
            return
        race = _Race(self._swarm, ID.from_string(peer))
        await race.run(well_formed(addresses))
        if not race.won:
            why = "; ".join(race.failures) or "no usable address is known"
            raise NodeUnreachable(f"Peer {peer} cannot be reached: {why}.", peer_id=peer)

    async def reaches(self, peer: PeerId, address: str) -> bool:
        """Whether a connection of its own to the address ends at the peer; closed before returning."""
        for usable in well_formed([address]):
            try:
                with trio.fail_after(DIAL_SECONDS):
                    connection = await self._swarm.dial_addr(Multiaddr(usable), ID.from_string(peer))
            except (trio.TooSlowError, BaseLibp2pError):
                return False
            with trio.move_on_after(CLOSE_SECONDS) as cleanup:
                cleanup.shield = True
                await connection.close()
            return True
        return False


class _Race:
    """One peer's addresses, tried at once; the first connection ends it."""

    def __init__(self, swarm: Swarm, peer: ID) -> None:
        self.won = False
        self.failures: list[str] = []
        self._swarm = swarm
        self._peer = peer

    async def run(self, addresses: Sequence[str]) -> None:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(self._attempt, address, over, nursery.cancel_scope)
                with trio.move_on_after(HEAD_START_SECONDS):
                    await over.wait()

    async def _attempt(self, address: str, over: trio.Event, race: trio.CancelScope) -> None:
        try:
            with trio.fail_after(DIAL_SECONDS):
                await self._swarm.dial_addr(Multiaddr(address), self._peer)
            self.won = True
            race.cancel()
        except trio.TooSlowError:
            self.failures.append(f"{address}: no answer in {DIAL_SECONDS:g} s")
        except BaseLibp2pError as error:
            self.failures.append(f"{address}: {error.__cause__ or error}")
        finally:
            over.set()
