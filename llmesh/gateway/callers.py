"""Callers: who asks, what they may do, and what they may spend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from llmesh.errors import Unauthorized
from llmesh.journal.purse import DurablePurse

__all__ = ["EVERYTHING", "GRANTS", "OWNER", "Caller", "Counted", "Scope"]


class Scope(StrEnum):
    """What a route is for; each route names one.

    OPEN takes no key at all; READ comes with every key, and with it METRICS, which is not counted; OWNER
    is never given to a key.
    """

    OPEN = "open"
    READ = "read"
    METRICS = "metrics"
    INFERENCE = "inference"
    DEPLOY = "deploy"
    WEBHOOKS = "webhooks"
    WALLET = "wallet"
    OWNER = "owner"


class Counted(StrEnum):
    """What is counted against a rate limit: calls of any kind, inferences, deployments."""

    API = "api"
    INFERENCE = "inference"
    DEPLOY = "deploy"


EVERYTHING = frozenset(Scope)
GRANTS = frozenset({Scope.READ, Scope.INFERENCE, Scope.DEPLOY, Scope.WEBHOOKS, Scope.WALLET})
"""What a key may be given."""


def _uncounted(what: Counted, cost: int) -> None:
    """The owner's own socket, and what runs in the node's process, have no limits."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner, or the holder of the key `name`; without a `purse` spending has no limit.

    `tally` counts against the caller's rate limits and raises RateLimited.
    """

    name: str
    scopes: frozenset[Scope]
    purse: DurablePurse | None = None
    tally: Callable[[Counted, int], None] = _uncounted

    def require(self, scope: Scope) -> None:
        """Raises Unauthorized unless this caller may do that."""
        if scope not in self.scopes:
            raise Unauthorized(
                f"The key {self.name} does not have the scope {scope}; the node's owner makes one that has:"
                f" `llmesh keys create --name NAME --scopes {scope}`."
            )

    def count(self, what: Counted, cost: int = 1) -> None:
        """Count before doing it: each row of a batch and each stream is one inference.

        Raises RateLimited where the limit has no room for all of `cost`, TooLarge where it never has; then
        nothing is counted.
        """
        self.tally(what, cost)


OWNER = Caller("owner", EVERYTHING)
"""Whoever comes by the owner's socket."""
