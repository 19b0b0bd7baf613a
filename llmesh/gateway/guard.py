"""Who may talk to the gateway: its owner's programs, not the web pages in its owner's browser.

Loopback is no wall: any page can send requests to it, and one that rebinds its own name can read
the answers.  So the Host must be a name of ours and an Origin must be that very host; `request`
adds that a body must be `application/json`, which a page may not send elsewhere without asking first
(Fetch standard).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from quart.wrappers.base import BaseRequestWebsocket

from llmesh.errors import Unauthorized

__all__ = ["Guard"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OWN_SITES = {"same-origin", "none"}


@dataclass(frozen=True, slots=True)
class Guard:
    """The hosts this gateway answers to; `any_address` admits every IP address as a host.

    Only a name can be rebound to another machine, so an address in Host is always meant.
    """

    hosts: frozenset[str] = _LOOPBACK
    any_address: bool = False

    @classmethod
    def for_host(cls, host: str, names: Iterable[str] = ()) -> Self:
        """The guard of a gateway that listens on `host` and is also called by `names`."""
        wildcard = _is_address(host) and ip_address(host).is_unspecified
        return cls(_LOOPBACK | {name.lower() for name in (host, *names)}, any_address=wildcard)

    def check(self, request: BaseRequestWebsocket) -> None:
        """Raises Unauthorized for a foreign Host, a foreign Origin, or a foreign page's request."""
        host = request.headers.get("Host", "").lower()
        name = _without_port(host)
        if name not in self.hosts and not (self.any_address and _is_address(name)):
            raise Unauthorized(
                f"This node does not answer to the host {host[:80]!r}; --allow-host names more."
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Unauthorized(f"Pages of {origin[:80]!r} may not use this node.")
        if _from_a_foreign_page(request):
            raise Unauthorized("Pages of another site may not use this node.")


def _from_a_foreign_page(request: BaseRequestWebsocket) -> bool:
    """Fetch metadata: a page's own request, not a link that its reader followed."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return site not in _OWN_SITES and request.headers.get("Sec-Fetch-Mode") != "navigate"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
