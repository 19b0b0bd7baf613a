"""Whether a port is free.  libp2p listens with SO_REUSEPORT, so it never notices a neighbour."""

from __future__ import annotations

import socket

from llmesh.net.libp2p.addresses import Endpoint, endpoint

__all__ = ["port_is_free"]

_FAMILY = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}


def port_is_free(address: str) -> bool:
    """Whether this machine could listen on the address now.  Raises ValidationFailed.

    Binds and listens for a moment without SO_REUSEPORT.  SO_REUSEADDR stays on, so that closed
    connections of an earlier run (TIME_WAIT) do not count as a neighbour.
    """
    return _can_listen(endpoint(address))


def _can_listen(at: Endpoint) -> bool:
    with socket.socket(_FAMILY.get(at.kind, socket.AF_INET), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((at.host, at.port))
            probe.listen(1)
        except OSError:
            return False
    return True
