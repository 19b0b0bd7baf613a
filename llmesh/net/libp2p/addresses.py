"""Addresses as multiaddr texts: what is well formed, and where a listening node can be dialled.

Only what this network dials is accepted: an IP address or a DNS name, and a TCP port
(https://github.com/multiformats/multiaddr).  Nothing here touches libp2p's own types, so a text
from a stranger is judged before any of them sees it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from multiaddr.utils import get_network_addrs  # type: ignore[import-untyped]

from llmesh.core.ids import peer_id
from llmesh.errors import ValidationFailed
from llmesh.net.host import PeerAddress

__all__ = ["Endpoint", "endpoint", "expand", "peer_address", "well_formed"]

_PARTS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]{1,253})/tcp/([0-9]{1,5})\Z")
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*\.?\Z")
_MAX_ADDRESSES = 8
_VERSION = {"ip4": 4, "ip6": 6}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address taken apart: `kind` is ip4, ip6, dns, dns4 or dns6."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}"


def endpoint(address: str) -> Endpoint:
    """Take a multiaddr text apart.  Raises ValidationFailed with the reason."""
    found = _PARTS.match(address)
    if not found:
        raise ValidationFailed(f"{address[:80]!r} is not an address such as /ip4/192.0.2.1/tcp/4001.")
    kind, host, port = found[1], found[2], int(found[3])
    if port > 65535:
        raise ValidationFailed(f"The port of {address[:80]!r} is over 65535.")
    if not _host_fits(kind, host):
        raise ValidationFailed(f"The host of {address[:80]!r} is not of the kind {kind}.")
    return Endpoint(kind, host, port)


def well_formed(addresses: Iterable[str]) -> tuple[str, ...]:
    """The addresses that can be dialled, at most 8, without duplicates: what we keep of foreign text."""
    kept: dict[str, None] = {}
    for address in addresses:
        try:
            found = endpoint(address)
        except ValidationFailed:
            continue
        if found.port and not _is_wildcard(found):
            kept[address] = None
        if len(kept) == _MAX_ADDRESSES:
            break
    return tuple(kept)


def peer_address(text: str) -> PeerAddress:
    """Read `/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...`.  Raises ValidationFailed."""
    address, found, peer = text.partition("/p2p/")
    if not found:
        raise ValidationFailed(f"{text[:120]!r} names no peer: /p2p/12D3KooW... is missing at its end.")
    return PeerAddress(peer_id(peer), (str(endpoint(address)),))


def expand(bound: Endpoint) -> Sequence[str]:
    """Where a socket bound here can be dialled: a wildcard becomes this machine's own addresses.

    Loopback comes only where there is nothing else.
    """
    if not _is_wildcard(bound):
        return (str(bound),)
    hosts = get_network_addrs(_VERSION[bound.kind]) or [_LOOPBACK[bound.kind]]
    return tuple(str(replace(bound, host=host)) for host in hosts)


_LOOPBACK = {"ip4": "127.0.0.1", "ip6": "::1"}


def _host_fits(kind: str, host: str) -> bool:
    if kind not in _VERSION:
        return bool(_NAME.match(host))
    try:
        return ipaddress.ip_address(host).version == _VERSION[kind] and "%" not in host
    except ValueError:
        return False


def _is_wildcard(at: Endpoint) -> bool:
    return at.kind in _VERSION and ipaddress.ip_address(at.host).is_unspecified
