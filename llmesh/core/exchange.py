"""The conversation about one attempt, as messages and a table of what may follow what.

Request -> Accepted -> Chunk* -> Completed, or Failed at any point, and Cancel from the consumer.
Both sides run the same table on what they send and what they receive; no bytes, no clock.  State
as a table after h11's `_state.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.core.inference import Attempt, Chunk, Usage
from llmesh.core.receipt import SignedReceipt
from llmesh.errors import MeshError, ValidationFailed

__all__ = [
    "Accepted",
    "Cancel",
    "Completed",
    "Event",
    "Exchange",
    "Failed",
    "Message",
    "Request",
    "Role",
    "State",
]


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
    """All chunks are out; the receipt says what was done and what it cost, never above the quote."""

    usage: Usage
    receipt: SignedReceipt

    @property
    def fee(self) -> Amount:
        """What it cost."""
        return self.receipt.charge.price


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt is over without an answer."""

    error: MeshError


@dataclass(frozen=True, slots=True)
class Cancel:
    """The consumer no longer wants it."""


Event: TypeAlias = Accepted | Chunk | Completed
"""What a provider yields while it serves, in this order; failure is raised."""

Message: TypeAlias = Request | Accepted | Chunk | Completed | Failed | Cancel


class Role(Enum):
    """The two sides of an exchange."""

    CONSUMER = auto()
    PROVIDER = auto()


class State(Enum):
    """How far an exchange has come, as one side sees it."""

    IDLE = auto()
    ASKED = auto()
    RUNNING = auto()
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


_Step: TypeAlias = tuple[State, Role, type[Message]]

STEPS: dict[_Step, State] = {
    (State.IDLE, Role.CONSUMER, Request): State.ASKED,
    (State.ASKED, Role.PROVIDER, Accepted): State.RUNNING,
    (State.ASKED, Role.PROVIDER, Failed): State.FAILED,
    (State.ASKED, Role.CONSUMER, Cancel): State.CANCELLED,
    (State.RUNNING, Role.PROVIDER, Chunk): State.RUNNING,
    (State.RUNNING, Role.PROVIDER, Completed): State.COMPLETED,
    (State.RUNNING, Role.PROVIDER, Failed): State.FAILED,
    (State.RUNNING, Role.CONSUMER, Cancel): State.CANCELLED,
}
"""Who may say what when, and what that leads to; whatever is not here is out of turn."""

CROSSED: frozenset[_Step] = frozenset(
    {
        (State.CANCELLED, Role.PROVIDER, Accepted),
        (State.CANCELLED, Role.PROVIDER, Chunk),
        (State.CANCELLED, Role.PROVIDER, Completed),
        (State.CANCELLED, Role.PROVIDER, Failed),
        (State.COMPLETED, Role.CONSUMER, Cancel),
        (State.FAILED, Role.CONSUMER, Cancel),
    }
)
"""What may still arrive because it met its opposite on the way; it is received without effect."""


class Exchange:
    """One side's view of the conversation about one attempt.

    Call `send` before a message leaves and `receive` when one has come.  An illegal step changes
    nothing: ValidationFailed with the peer's id where the peer took it, RuntimeError where this
    side would have, since that is a bug of ours.
    """

    def __init__(self, role: Role, peer: PeerId) -> None:
        self.role = role
        self.peer = peer
        self.state = State.IDLE
        self.attempt: Attempt | None = None
        self.chunks = 0

    def send(self, message: Message) -> None:
        """Note a message of this side.  Raises RuntimeError."""
        fault = self._fault(self.role, message)
        if fault:
            raise RuntimeError(fault)
        self._take(self.role, message)

    def receive(self, message: Message) -> None:
        """Note a message of the peer.  Raises ValidationFailed."""
        sender = Role.PROVIDER if self.role is Role.CONSUMER else Role.CONSUMER
        if (self.state, sender, type(message)) in CROSSED:
            return
        fault = self._fault(sender, message)
        if fault:
            raise ValidationFailed(fault, peer_id=self.peer)
        self._take(sender, message)

    def _fault(self, sender: Role, message: Message) -> str:
        """What is wrong with this message at this point; nothing if empty."""
        kind = type(message).__name__
        if (self.state, sender, type(message)) not in STEPS:
            return f"The {sender.name.lower()} said {kind} while the exchange was {self.state.name.lower()}."
        if isinstance(message, Chunk) and message.index != self.chunks:
            return f"Chunk {message.index} came where {self.chunks} was due."
        if isinstance(message, Completed) and self.attempt and message.fee > self.attempt.quote:
            return f"A fee of {message.fee} MESH is above the quote of {self.attempt.quote}."
        return ""

    def _take(self, sender: Role, message: Message) -> None:
        self.state = STEPS[self.state, sender, type(message)]
        if isinstance(message, Request):
            self.attempt = message.attempt
        elif isinstance(message, Chunk):
            self.chunks += 1
