"""The libp2p Host: TCP, Noise and Yamux, nothing else offered or accepted.

Opened by `open_libp2p_host`, which owns every task of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, NodeUnreachable
from llmesh.net.host import Accept
from llmesh.net.libp2p.addresses import endpoint, expand
from llmesh.net.libp2p.dht import Judge, KademliaDht
from llmesh.net.libp2p.dialer import Dialer
from llmesh.net.libp2p.guard import contain_handlers, contained_handler, end_stream, opening_session
from llmesh.net.libp2p.link import StreamLink, open_link
from llmesh.net.libp2p.ports import port_is_free
from llmesh.net.libp2p.stack import build_stack
from llmesh.net.libp2p.upkeep import Upkeep

__all__ = ["Libp2pHost", "open_libp2p_host"]

LINK_PROTOCOL = TProtocol("/llmesh/session/1.0.0")

STREAM_SECONDS = 3.0
CLOSE_SECONDS = 1.0


class Libp2pHost:
    """See `llmesh.net.host.Host`."""

    def __init__(
        self, host: BasicHost, swarm: Swarm, dialer: Dialer, dht: KademliaDht, addresses: tuple[str, ...]
    ) -> None:
        self.peer_id = PeerId(str(host.get_id()))
        self.addresses = addresses
        self.dht = dht
        self._host = host
        self._swarm = swarm
        self._dialer = dialer

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._swarm.get_connections())

    def serve(self, accept: Accept) -> None:
        """Hand every link that a peer opens from now on to `accept`; called once."""

        async def handle(stream: INetStream) -> None:
            link = await open_link(stream, initiator=False)
            try:
                await accept(link)
            finally:
                await link.aclose()

        self._host.set_stream_handler(LINK_PROTOCOL, contained_handler(handle))

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> StreamLink:
        """Open a link, trying each address in turn.  Raises NodeUnreachable.

        An open connection is used first.  A cancelled dial leaves no link and no half-open connection.
        """
        async with self._dialer.turn(peer):
            if self._swarm.get_connections(ID.from_string(peer)):
                try:
                    return await self._open(peer)
                except NodeUnreachable:
                    await self.hang_up(peer)
            await self._dialer.connect(peer, addresses)
            return await self._open(peer)

    async def reaches(self, peer: PeerId, address: str) -> bool:
        """Whether a new connection to the address ends at the peer; it is closed again at once."""
        return await self._dialer.reaches(peer, address)

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection with the peer; at most a second."""
        with trio.move_on_after(CLOSE_SECONDS) as cleanup:
            cleanup.shield = True
            await self._swarm.close_peer(ID.from_string(peer))

    async def _open(self, peer: PeerId) -> StreamLink:
        """A link over the connection that is there.  Raises NodeUnreachable."""
        with opening_session(peer), trio.fail_after(STREAM_SECONDS):
            stream = await self._host.new_stream(ID.from_string(peer), [LINK_PROTOCOL])
            return await _opened(stream)


@asynccontextmanager
async def open_libp2p_host(
    seed: bytes, *, listen: Sequence[str], announce: Sequence[str] = (), judge: Judge
) -> AsyncIterator[Libp2pHost]:
    """Run a host with the identity of a 32-byte Ed25519 seed.

    `listen` and `announce` are multiaddr texts; port 0 asks for a free one.  `judge` decides which
    announcements this node stores for others; it must not wait.  Raises ValidationFailed for a
    malformed address and NetworkError for one that cannot be listened on.
    """
    wanted = _checked(listen)
    reachable = [str(endpoint(address)) for address in announce]
    host, swarm = build_stack(seed, wanted, lambda: reachable)
    dialer = Dialer(swarm)
    upkeep = Upkeep(swarm, dialer, LINK_PROTOCOL)
    dht = KademliaDht(host, dialer, upkeep, judge)
    contain_handlers(host.get_mux())
    swarm.set_stream_handler(contained_handler(swarm.common_stream_handler))  # it negotiates
    async with _running(host, swarm, wanted), trio.open_nursery() as nursery:
        reachable = reachable or _listening(swarm)
        nursery.start_soon(upkeep.run)
        nursery.start_soon(dht.run)
        try:
            yield Libp2pHost(host, swarm, dialer, dht, tuple(reachable))
        finally:
            nursery.cancel_scope.cancel()
            # libp2p closes one connection after the other, 0.2 s each.
            with trio.move_on_after(CLOSE_SECONDS) as cleanup:
                cleanup.shield = True
                await upkeep.hang_up()


@asynccontextmanager
async def _running(host: BasicHost, swarm: Swarm, wanted: Sequence[Multiaddr]) -> AsyncIterator[None]:
    """Listen, and say goodbye at the end: leaving `run` alone keeps the peers' sockets open."""
    unheard = None
    async with host.run(wanted):
        # It would dial whoever it knows until half of all connections are in use.
        await swarm.auto_connector.stop()
        try:
            unheard = _not_listening(swarm, wanted)
            if unheard is None:
                yield
        finally:
            with trio.move_on_after(CLOSE_SECONDS) as cleanup:
                cleanup.shield = True
                await host.close()
    if unheard is not None:
        raise NetworkError(f"Cannot listen on {unheard}.")


async def _opened(stream: INetStream) -> StreamLink:
    try:
        return await open_link(stream, initiator=True)
    except BaseException:
        await end_stream(stream)
        raise


def _checked(listen: Sequence[str]) -> list[Multiaddr]:
    for address in listen:
        if endpoint(address).port and not port_is_free(address):
            raise NetworkError(f"Cannot listen on {address}: the port is taken or the address is not ours.")
    return [Multiaddr(str(endpoint(address))) for address in listen]


def _not_listening(swarm: Swarm, wanted: Sequence[Multiaddr]) -> Multiaddr | None:
    """The first address that libp2p failed to listen on; it raises nothing itself."""
    for address in wanted:
        listener = swarm.listeners.get(str(address))
        if listener is None or not listener.get_addrs():
            return address
    return None


def _listening(swarm: Swarm) -> list[str]:
    """Where the host can be dialled, without duplicates."""
    bound = [endpoint(str(each)) for listener in swarm.listeners.values() for each in listener.get_addrs()]
    found = [text for each in bound for text in expand(each)]
    return sorted(set(found), key=found.index)
