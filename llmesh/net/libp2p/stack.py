"""What the host is made of: one transport, one cipher, one multiplexer, and bounds on all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from llmesh.net.libp2p.inlets import Muxers
from llmesh.net.libp2p.noise import Noise
from llmesh.net.libp2p.peerstore import BoundedPeerStore
from llmesh.net.libp2p.transport import Tcp

__all__ = ["build_stack"]

MAX_CONNECTIONS = 600
MAX_CONNECTIONS_PER_PEER = 4
HANDSHAKE_SECONDS = 5.0
# The count is libp2p's own and leaks one for each stream that it cancels while opening it; what
# bounds streams in earnest is the limit per connection in `upkeep`.
MAX_STREAMS = 1_000_000

# libp2p reports each failed handshake of a stranger as an error with its stack, and a rejected record
# with all its bytes; what matters of these reaches us as exceptions.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)


def build_stack(
    seed: bytes, listen: Sequence[Multiaddr], addresses: Callable[[], Sequence[str]]
) -> tuple[BasicHost, Swarm]:
    """A host that is not running yet; `addresses` tells peers at any time where it can be dialled.

    Plaintext, TLS, mplex and the other transports are left out, not just unused: a dialer that wants
    them is refused.
    """
    pair = create_new_key_pair(seed)
    noise = Noise(pair, noise_privkey=create_new_noise_pair().private_key)
    host = new_host(
        key_pair=pair,
        peerstore_opt=BoundedPeerStore(ID.from_pubkey(pair.public_key)),
        listen_addrs=listen,
        transports=[Tcp()],
        sec_opt={NOISE: noise},
        muxer_opt={TProtocol(YAMUX): Yamux},
        connection_config=_connection_config(),
        resource_manager=_resource_manager(),
        addrs_factory=lambda _: [Multiaddr(address) for address in addresses()],
        disable_identify_address_discovery=True,
    )
    swarm = cast("Swarm", host.get_network())
    swarm.upgrader.muxer_multistream = Muxers({TProtocol(YAMUX): Yamux})
    # A dead address is dead: whoever dialled decides when to try again.
    swarm.retry_config = RetryConfig(max_retries=0)
    return cast("BasicHost", host), swarm


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
