"""What peers ask each other about their directories, and what is answered, as values.

The wire form is in proto/llmesh/wire/directory.proto.  Nothing in a message has been verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmesh.core.amount import Amount
from llmesh.core.announcement import SignedAnnouncement
from llmesh.core.directory import Cursor
from llmesh.core.ids import ModelId, PeerId

__all__ = ["Answer", "Get", "Hint", "News", "Parting", "Query", "Record", "Search", "Sync"]


@dataclass(frozen=True, slots=True)
class Record:
    """An announcement as it arrived; see `read_announcement`."""

    payload: bytes
    signature: bytes

    @classmethod
    def of(cls, signed: SignedAnnouncement) -> Record:
        """The same, to be sent on."""
        return cls(signed.payload, signed.signature)


@dataclass(frozen=True, slots=True)
class Hint:
    """That a peer has announced something under a sequence number."""

    peer_id: PeerId
    sequence: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What has changed since `cursor`, except what I `know` (fingerprints of what I learnt since)?"""

    cursor: Cursor | None = None
    known: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """Who offers models with this part of a name, or this very model, at this price?"""

    name: str = ""
    model_id: ModelId | None = None
    max_fee: Amount | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Get:
    """What do these peers announce, if it is at least that new?"""

    wanted: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class News:
    """This has changed: the records themselves, or hints to get them."""

    records: tuple[Record, ...] = ()
    hints: tuple[Hint, ...] = ()


@dataclass(frozen=True, slots=True)
class Parting:
    """I no longer need this session; do you?"""


Query: TypeAlias = Sync | Search | Get | News | Parting


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of an answer; `cursor` and `wanted` belong to Sync."""

    records: tuple[Record, ...] = ()
    cursor: Cursor | None = None
    wanted: tuple[bytes, ...] = ()
