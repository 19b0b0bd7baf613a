"""Whose address a request comes from, and which addresses count as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

__all__ = ["Network", "client_address", "counted_as"]

Network: TypeAlias = IPv4Network | IPv6Network

_MOST_PROXIES = 16
_HOME_PREFIX = 64


def client_address(peer: str, forwarded: Iterable[str], proxies: Sequence[Network]) -> str:
    """The address behind the listed proxies; `forwarded` are the values of X-Forwarded-For.

    Each proxy appends whom it heard from, so the list is read from its end for as long as who wrote
    is listed.  What others say of themselves is not believed, and what is no address ends the reading.
    """
    heard = [part.strip() for value in forwarded for part in value.split(",")]
    address = peer
    for said in reversed(heard[-_MOST_PROXIES:]):
        if not _is_listed(address, proxies) or _parse(said) is None:
            break
        address = said
    return address


@lru_cache(maxsize=1024)
def counted_as(address: str) -> str:
    """The name under which an address is counted: IPv6 by its /64, which is one customer's."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _HOME_PREFIX), strict=False))
    return str(parsed or address)


def _is_listed(address: str, proxies: Sequence[Network]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed in network for network in proxies)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address; IPv4 inside IPv6 is the IPv4 address that it stands for."""
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
