"""The libp2p Host: TCP, Noise and Yamux, nothing else offered or accepted.

Opened by `open_libp2p_host`, which owns every task of it.  Connections are dialled here, address by
address, because libp2p's own `connect` tries one address and always costs 250 ms.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, NodeUnreachable
from llmesh.net.host import Accept
from llmesh.net.libp2p.addresses import endpoint, expand, well_formed
from llmesh.net.libp2p.guard import contain_handlers, contained, end_stream
from llmesh.net.libp2p.link import StreamLink, open_link
from llmesh.net.libp2p.ports import port_is_free
from llmesh.net.libp2p.transport import Tcp

__all__ = ["Libp2pHost", "open_libp2p_host"]

LINK_PROTOCOL = TProtocol("/llmesh/session/1.0.0")

# One address of a peer may take this long; the next one starts earlier.
DIAL_SECONDS = 3.0
HEAD_START_SECONDS = 0.25
STREAM_SECONDS = 3.0
CLOSE_SECONDS = 1.0
HANDSHAKE_SECONDS = 5.0

MAX_CONNECTIONS = 600
MAX_CONNECTIONS_PER_PEER = 4
MAX_STREAMS = 100_000

# libp2p reports each failed handshake of a stranger as an error with its stack, and a rejected DHT
# record with all its bytes; what matters of these reaches us as exceptions.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)


class Libp2pHost:
    """See `llmesh.net.host.Host`."""

    def __init__(self, host: BasicHost, swarm: Swarm, addresses: tuple[str, ...]) -> None:
        self.peer_id = PeerId(str(host.get_id()))
        self.addresses = addresses
        self._host = host
        self._swarm = swarm
        self._dialling: dict[PeerId, trio.Lock] = {}

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._swarm.get_connections())

    def serve(self, accept: Accept) -> None:
        """Hand every link that a peer opens from now on to `accept`; called once."""

        async def handle(stream: INetStream) -> None:
            await accept(await open_link(stream, initiator=False))

        self._host.set_stream_handler(LINK_PROTOCOL, contained(handle))

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> StreamLink:
        """Open a link, trying each address in turn.  Raises NodeUnreachable.

        A connection that is already there is used first.  A cancelled dial leaves nothing open.
        """
        async with self._turn(peer):
            if self._swarm.get_connections(ID.from_string(peer)):
                try:
                    return await self._open(peer)
                except NodeUnreachable:
                    await self.hang_up(peer)
            await self._connect(peer, addresses)
            return await self._open(peer)

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection with the peer; at most a second."""
        with trio.move_on_after(CLOSE_SECONDS) as cleanup:
            cleanup.shield = True
            await self._swarm.close_peer(ID.from_string(peer))

    @asynccontextmanager
    async def _turn(self, peer: PeerId) -> AsyncIterator[None]:
        """One dial per peer at a time: libp2p would open a connection for each."""
        lock = self._dialling.setdefault(peer, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._dialling.pop(peer, None)

    async def _open(self, peer: PeerId) -> StreamLink:
        """A link over the connection that is there.  Raises NodeUnreachable."""
        try:
            with trio.fail_after(STREAM_SECONDS):
                stream = await self._host.new_stream(ID.from_string(peer), [LINK_PROTOCOL])
        except (BaseLibp2pError, trio.TooSlowError) as error:
            raise NodeUnreachable(f"Peer {peer} opened no session: {error}.", peer_id=peer) from error
        try:
            return await open_link(stream, initiator=True)
        except NetworkError as error:
            raise NodeUnreachable(f"Peer {peer} opened no session: {error}.", peer_id=peer) from error
        except trio.Cancelled:
            await end_stream(stream)
            raise

    async def _connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Race the addresses, each with a head start before the next.  Raises NodeUnreachable."""
        candidates = well_formed(addresses)
        failures: list[str] = []
        async with trio.open_nursery() as nursery:
            for address in candidates:
                failed = trio.Event()
                nursery.start_soon(self._attempt, peer, address, nursery.cancel_scope, failed, failures)
                with trio.move_on_after(HEAD_START_SECONDS):
                    await failed.wait()
        if not self._swarm.get_connections(ID.from_string(peer)):
            why = "; ".join(failures) or "no usable address is known"
            raise NodeUnreachable(f"Peer {peer} cannot be reached: {why}.", peer_id=peer)

    async def _attempt(
        self,
        peer: PeerId,
        address: str,
        race: trio.CancelScope,
        failed: trio.Event,
        failures: list[str],
    ) -> None:
        try:
            with trio.fail_after(DIAL_SECONDS):
                await self._swarm.dial_addr(Multiaddr(address), ID.from_string(peer))
            race.cancel()
        except (BaseLibp2pError, trio.TooSlowError) as error:
            failures.append(f"{address}: {error or 'no answer'}")
            failed.set()


@asynccontextmanager
async def open_libp2p_host(
    seed: bytes, *, listen: Sequence[str], announce: Sequence[str] = ()
) -> AsyncIterator[Libp2pHost]:
    """Run a host with the identity of a 32-byte Ed25519 seed.

    `listen` and `announce` are multiaddr texts; port 0 asks for a free one.  Raises ValidationFailed
    for a malformed address and NetworkError for one that cannot be listened on.
    """
    announced = tuple(str(endpoint(address)) for address in announce)
    wanted = [Multiaddr(str(endpoint(address))) for address in listen]
    for address in listen:
        if endpoint(address).port and not port_is_free(address):
            raise NetworkError(f"Cannot listen on {address}: the port is taken or the address is not ours.")
    reachable: list[str] = []
    host = _new_host(seed, wanted, reachable)
    swarm = cast("Swarm", host.get_network())
    async with host.run(wanted):
        try:
            reachable += announced or _listening(swarm, wanted)
            yield Libp2pHost(host, swarm, tuple(reachable))
        finally:
            # Only this tells the peers: leaving `run` alone keeps the sockets open.
            with trio.move_on_after(CLOSE_SECONDS) as cleanup:
                cleanup.shield = True
                await host.close()


def _new_host(seed: bytes, wanted: Sequence[Multiaddr], reachable: list[str]) -> BasicHost:
    pair = create_new_key_pair(seed)
    noise = NoiseTransport(pair, noise_privkey=create_new_noise_pair().private_key)
    made = new_host(
        key_pair=pair,
        listen_addrs=wanted,
        transports=[Tcp()],
        sec_opt={NOISE: noise},
        muxer_opt={TProtocol(YAMUX): Yamux},
        connection_config=_connection_config(),
        resource_manager=_resource_manager(),
        addrs_factory=lambda _: [Multiaddr(address) for address in reachable],
        disable_identify_address_discovery=True,
    )
    host = cast("BasicHost", made)
    # A dead address is dead: our callers decide when to try again.
    cast("Swarm", host.get_network()).retry_config = RetryConfig(max_retries=0)
    contain_handlers(host.get_mux())
    return host


def _connection_config() -> ConnectionConfig:
    """No automatic dialling of known peers: the mesh decides whom it knows."""
    return ConnectionConfig(
        max_connections=MAX_CONNECTIONS,
        high_watermark=MAX_CONNECTIONS,
        low_watermark=0,
        min_connections=0,
        max_connections_per_peer=MAX_CONNECTIONS_PER_PEER,
        inbound_upgrade_timeout=HANDSHAKE_SECONDS,
        outbound_upgrade_timeout=HANDSHAKE_SECONDS,
        outbound_stream_protocol_negotiation_timeout=HANDSHAKE_SECONDS,
        inbound_stream_protocol_negotiation_timeout=HANDSHAKE_SECONDS,
    )


def _resource_manager() -> ResourceManager:
    """Bounds per peer and in all; each connection counts twice while it is being set up."""
    return ResourceManager(
        limits=ResourceLimits(max_connections=2 * MAX_CONNECTIONS, max_streams=MAX_STREAMS),
        connection_limits=ConnectionLimits(max_established_per_peer=MAX_CONNECTIONS_PER_PEER),
        enable_metrics=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        enable_rate_limiting=False,
    )


def _listening(swarm: Swarm, wanted: Sequence[Multiaddr]) -> list[str]:
    """Where the host can be dialled.  Raises NetworkError if an address is not listened on."""
    found: list[str] = []
    for address in wanted:
        listener = swarm.listeners.get(str(address))
        bound = listener.get_addrs() if listener is not None else ()
        if not bound:
            raise NetworkError(f"Cannot listen on {address}.")
        found += [text for each in bound for text in expand(endpoint(str(each)))]
    return sorted(set(found), key=found.index)
