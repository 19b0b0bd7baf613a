"""The frames of a session as plain values; the wire form is in proto/llmesh/wire/session.proto.

`call` numbers a call: the side that dialled uses odd numbers, the other even ones, each only once
and in rising order.  Call 0 is the session itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "MAX_PAYLOAD", "Cancel", "Credit", "End", "Failed", "Frame", "Hello", "Message", "Open",
    "Ping", "Pong",
]  # fmt: skip

MAX_PAYLOAD = 131_000
"""Most bytes of a message in one frame, so that a frame fills two Noise messages: one write."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What each side says first: its program, how it sees the other, where it may be dialled."""

    agent: str
    observed_address: str
    addresses: tuple[str, ...]


@dataclass(slots=True)
class Ping:
    """Are you there?"""


@dataclass(slots=True)
class Pong:
    """Yes."""


@dataclass(slots=True)
class Open:
    """A new call with its first message, or the first piece of it; `timeout_ms` 0 means no limit."""

    call: int
    protocol: str
    timeout_ms: int
    payload: bytes
    more: bool


@dataclass(slots=True)
class Message:
    """A message, or a piece of one where `more` is set."""

    call: int
    payload: bytes | memoryview
    more: bool


@dataclass(slots=True)
class End:
    """No more messages from this side; from the handler's side the call is over."""

    call: int


@dataclass(slots=True)
class Failed:
    """The call is over because of an error; `retry_after` in seconds."""

    call: int
    code: int
    message: str
    retry_after: float | None


@dataclass(slots=True)
class Cancel:
    """The opener no longer wants the call."""

    call: int


@dataclass(slots=True)
class Credit:
    """The receiver of this frame may send `amount` bytes more; call 0 is the session's own window."""

    call: int
    amount: int


Frame: TypeAlias = Hello | Ping | Pong | Open | Message | End | Failed | Cancel | Credit
