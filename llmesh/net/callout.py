"""Callout: a POST to an address that somebody else chose, which may lead to the public internet only.

A name is resolved here, once, and every address that it has is looked at before the first packet: only
addresses that are globally routable (IANA's registries, as `ipaddress` has them), or that the operator
allows by name or network, are connected to.  So no name that points inside, in whatever spelling and
whenever it changes, opens a connection.  Redirects are not followed.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

import httpcore2
import trio

from llmesh.errors import NetworkError, ValidationFailed

__all__ = ["Allowed", "Callout", "Resolve", "is_public", "read_allowed"]

PATIENCE = 10.0
"""Seconds for a whole call."""
MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read."""
_NAT64 = ip_network("64:ff9b::/96")
_INSIDE = tuple(
    map(
        ip_network,
        # 3.11 calls these global: IETF's own, 6to4 relays, local NAT64, IPv4-translated, examples, SRv6.
        ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "::ffff:0:0:0/96", "3fff::/20", "5f00::/16"),
    )
)
_HIDDEN = (
    "The address of the webhook is not one of the public internet, and this node does not allow it;"
    " its owner does with --webhook-allow."
)
_PLAIN = (
    "A webhook's URL begins with https://; only a host that the node's owner allows with --webhook-allow"
    " may go without."
)
_AWAY = "The webhook could not be reached."
_NOWHERE = "The host of the webhook's URL does not resolve."

Address: TypeAlias = IPv4Address | IPv6Address
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses that a host name has; raises OSError where it has none, ValidationFailed for no name."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the operator lets be called although it is not public; also without TLS."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def host(self, host: str) -> bool:
        """Whether it is allowed by its name."""
        return host.lower().rstrip(".") in self.hosts

    def address(self, address: Address) -> bool:
        """Whether it is allowed by its number."""
        return any(address in network for network in self.networks)


def read_allowed(texts: Iterable[str]) -> Allowed:
    """Host names and networks (CIDR, or one address) as an operator writes them."""
    hosts, networks = set(), []
    for text in texts:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            hosts.add(text.lower().rstrip("."))
    return Allowed(frozenset(hosts), tuple(networks))


def is_public(address: Address) -> bool:
    """Whether anybody on the internet means the same machine by it; an embedded IPv4 address counts."""
    return all(map(_is_outside, _meant(address)))


def _is_outside(address: Address) -> bool:
    if address.is_multicast or getattr(address, "is_site_local", False):
        return False
    return address.is_global and not any(address in network for network in _INSIDE)


def _meant(address: Address) -> Iterable[Address]:
    yield address
    if isinstance(address, IPv6Address):
        embedded = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
        yield from (each for each in embedded if each is not None)
        if address in _NAT64:
            yield IPv4Address(int(address) & 0xFFFFFFFF)
        if int(address) >> 32 == 0:  # "IPv4-compatible", long deprecated
            yield IPv4Address(int(address))


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """By the system's resolver."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except UnicodeError:  # such as one with a label over 63 characters
        raise ValidationFailed("The host of the webhook's URL is no name of the DNS.") from None
    return [str(address[0]) for *_, address in found]


class Callout:
    """Posts to URLs that are not to be trusted; connections are not kept."""

    def __init__(
        self, allowed: Allowed, resolve: Resolve = resolve_name, context: ssl.SSLContext | None = None
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._context = context or ssl.create_default_context()

    async def check(self, url: str) -> None:
        """Refuse a URL that may not be called; one whose host does not resolve now may later.

        `post` looks at it again.  Raises ValidationFailed, with the same words for everything that is
        not public.
        """
        parts = self._parts(url)
        with trio.move_on_after(PATIENCE), suppress(NetworkError):
            await self._addresses(str(parts.hostname), parts.port or 443)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post JSON; the status of the answer, whose body is dropped.

        Raises ValidationFailed as `check` does, NetworkError where the host does not resolve or no answer
        came, always in the same words: what is inside the network is nothing that an outsider may learn.
        Cancellable.
        """
        self._parts(url)
        with trio.move_on_after(PATIENCE):
            try:
                return await self._post(url, headers, body)
            except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
                raise NetworkError(_AWAY) from None
        raise NetworkError(_AWAY)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        said = [(b"content-type", b"application/json"), (b"user-agent", b"llmesh")]
        said += [(name.encode(), value.encode()) for name, value in headers.items()]
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._context, max_keepalive_connections=0, network_backend=_Guarded(self._addresses)
        )
        async with pool, pool.stream("POST", url, headers=said, content=body) as answer:
            left = MAX_ANSWER
            async with aclosing(answer.aiter_stream()) as pieces:
                async for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        break
            status: int = answer.status
            return status

    def _parts(self, url: str) -> SplitResult:
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValidationFailed(
                "A webhook's URL is plain ASCII without spaces: write others as %xx, in the host as xn--."
            )
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError:
            raise ValidationFailed(f"{url[:80]!r} is not a URL.") from None
        if not host or parts.scheme not in ("https", "http") or port == 0:
            raise ValidationFailed("A webhook's URL begins with https:// and names a host.")
        if parts.username is not None or parts.password is not None:
            raise ValidationFailed("A webhook's URL holds no user and no password.")
        if parts.scheme == "http" and not self._may_be_plain(host):
            raise ValidationFailed(_PLAIN)
        return parts

    def _may_be_plain(self, host: str) -> bool:
        address = _address(host)
        return self._allowed.host(host) or (address is not None and self._allowed.address(address))

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Where the host is.

        Raises ValidationFailed unless all of it may be called, NetworkError if it is nowhere.
        """
        found = [_address(text) for text in await self._resolved(host, port)]
        for address in found:
            if address is None or not (
                self._allowed.host(host) or self._allowed.address(address) or is_public(address)
            ):
                raise ValidationFailed(_HIDDEN)
        return [str(address) for address in found]

    async def _resolved(self, host: str, port: int) -> Sequence[str]:
        with suppress(OSError):
            if found := await self._resolve(host, port):
                return found
        raise NetworkError(_NOWHERE)


class _Guarded(httpcore2.AsyncNetworkBackend):
    """Connects to the very addresses that were looked at."""

    def __init__(self, addresses: Callable[[str, int], Awaitable[list[str]]]) -> None:
        self._addresses = addresses
        self._inner = httpcore2.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Try each address of the host in turn."""
        failure: Exception = OSError(host)
        for address in await self._addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.NetworkError as error:
                failure = error
        raise failure


def _address(text: str) -> Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
