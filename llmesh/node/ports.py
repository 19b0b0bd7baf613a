"""Which ports this node listens on; every fault is found before anything else is started."""

from __future__ import annotations

import socket

from llmesh.gateway.server import bind
from llmesh.net.libp2p.ports import port_is_free
from llmesh.node.config import NodeConfig
from llmesh.node.faults import StartRefused
from llmesh.node.home import Home

__all__ = ["gateway_socket", "listen_addresses"]

FIRST_PORT = 4001
LAST_PORT = 4100
_EVERYWHERE = "/ip4/0.0.0.0/tcp/{}"


def gateway_socket(config: NodeConfig) -> socket.socket:
    """The gateway's socket, listening.  Raises StartRefused where it cannot be had."""
    try:
        return bind(config.host, config.port)
    except OSError as error:
        raise StartRefused(
            f"The gateway cannot listen on {config.host} port {config.port} ({error.strerror or error});"
            " stop what uses it, choose another with --port (0 takes any free one), or correct --host."
        ) from None


def listen_addresses(config: NodeConfig, home: Home) -> tuple[str, ...]:
    """Where other nodes connect to: what was asked for, or the remembered or next free port.

    Raises StartRefused for an address that was asked for and is taken or not this machine's.
    """
    for address in config.listen:
        if not port_is_free(address):
            raise StartRefused(
                f"Other nodes cannot be served at {address}: the port is taken or the address is not this"
                " machine's; choose another with --listen."
            )
    return config.listen or (_EVERYWHERE.format(_free_port(home)),)


def _free_port(home: Home) -> int:
    remembered = home.remembered_port()
    ports = list(range(FIRST_PORT, LAST_PORT + 1))
    if remembered is not None and 0 < remembered < 65536:
        ports.insert(0, remembered)
    for port in ports:
        if port_is_free(_EVERYWHERE.format(port)):
            if port != remembered:
                home.remember_port(port)
            return port
    raise StartRefused(f"The ports {FIRST_PORT} to {LAST_PORT} are all taken; choose one with --listen.")
