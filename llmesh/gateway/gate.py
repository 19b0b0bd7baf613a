"""The gate: every request passes it, and comes out with a caller or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from quart.wrappers.base import BaseRequestWebsocket

from llmesh.errors import Unauthorized
from llmesh.gateway.addresses import Network, client_address, counted_as
from llmesh.gateway.callers import EVERYTHING, GRANTS, OWNER, Caller, Counted, Scope
from llmesh.gateway.guard import Guard
from llmesh.gateway.keys import PREFIX, Keys
from llmesh.gateway.limits import Limits

__all__ = ["Gate", "presented_key"]

_BEARER = "bearer"
_CREATE = "llmesh keys create --name NAME"
_NODE = "node"
_NOBODY = Caller("nobody", frozenset())


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may come in: `guard` looks at hosts and pages, `keys` at credentials, `limits` count.

    Without a guard it is the owner's socket, where whoever comes is the owner; keys or limits that are
    None are not asked.  With `always` a key is needed even while there is none; otherwise
    the gateway serves its owner until the first key is made.  Only `proxies` may say for whom they ask.
    """

    guard: Guard | None = field(default_factory=Guard)
    keys: Keys | None = None
    limits: Limits | None = None
    always: bool = False
    proxies: tuple[Network, ...] = ()

    def admit(self, request: BaseRequestWebsocket, scope: Scope | None) -> Caller:
        """Who asks, for something of that scope, counted as a call; None is for a path that leads nowhere.

        Raises Unauthorized and RateLimited.
        """
        if self.guard is None:
            return OWNER
        self.check(request)
        if scope is None or scope is Scope.OPEN:
            return _NOBODY
        caller = self.holder(request)
        caller.require(Scope.READ if scope is Scope.METRICS else scope)
        if scope is not Scope.METRICS:
            caller.count(Counted.API)
        return caller

    def holder(self, request: BaseRequestWebsocket) -> Caller:
        """Who asks, as of now: its key may have been revoked since it came in.  Raises Unauthorized."""
        if self.guard is None:
            return OWNER
        return self.caller(self.address(request), presented_key(request.headers.get("Authorization", "")))

    def check(self, request: BaseRequestWebsocket) -> None:
        """Whether such a request may come at all, whoever makes it.  Raises Unauthorized."""
        if self.guard is not None:
            self.guard.check(request)

    def address(self, request: BaseRequestWebsocket) -> str:
        """The address that a request is counted under."""
        peer = request.remote_addr or ""
        return counted_as(client_address(peer, request.headers.getlist("X-Forwarded-For"), self.proxies))

    def caller(self, address: str, key: str | None) -> Caller:
        """The holder of a key, or without one the owner where that is allowed.  Raises Unauthorized."""
        try:
            return self._caller(address, key)
        except Unauthorized:
            self._tally(address, address)(Counted.API, 1)  # guessing counts too
            raise

    def _caller(self, address: str, key: str | None) -> Caller:
        keys = self.keys
        if keys is None or not (self.always or keys.any or (key or "").startswith(PREFIX)):
            return Caller(OWNER.name, EVERYTHING, tally=self._tally(address, address))
        if key is None:
            raise Unauthorized(
                "This gateway asks for a key: send it as `Authorization: Bearer llmesh_...`."
                f" The node's owner makes one: `{_CREATE}`."
            )
        row = keys.find(key)
        scopes = frozenset(scope for scope in GRANTS if scope in row.scopes)
        return Caller(row.id, scopes, keys.purse(row), self._tally(f"key {row.id}", address))

    def _tally(self, who: str, address: str) -> Callable[[Counted, int], None]:
        limits = self.limits
        names = {Counted.API: who, Counted.INFERENCE: address, Counted.DEPLOY: _NODE}

        def tally(what: Counted, cost: int) -> None:
            if limits is not None:
                limits.count(what, names[what], cost)

        return tally


def presented_key(authorization: str) -> str | None:
    """The key of an Authorization header (RFC 6750); another scheme's is none of ours."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == _BEARER and key.strip() else None
