"""The conversation about one attempt, as messages and a table of what may follow what.

Request -> Accepted -> Chunk* -> Completed, or Failed at any point, and Cancel from the consumer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmesh.core.amount import Amount
from llmesh.core.inference import Attempt, Chunk, Usage
from llmesh.errors import MeshError

__all__ = ["Accepted", "Cancel", "Completed", "Event", "Failed", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """The consumer opens: this attempt, please."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has checked everything it can and will run it; `queued` requests are before it."""

    queued: int = 0
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class Completed:
    """All chunks are out; `fee` is what it cost, never above the attempt's quote."""

    usage: Usage
    fee: Amount


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt is over without an answer."""

    error: MeshError


@dataclass(frozen=True, slots=True)
class Cancel:
    """The consumer no longer wants it."""


Event: TypeAlias = Accepted | Chunk | Completed
"""What a provider yields while it serves, in this order; failure is raised."""
