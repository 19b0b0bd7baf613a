"""Announcement: a provider's signed record of what it offers, and where it is to be reached.

The signature covers the canonical JSON that travels, so a holder passes on fields it does not
know.  A record is replaced only by one of the same peer with a higher sequence number; it dies at
`expires_at`.  A record without offers withdraws all of its peer's earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card

__all__ = ["Announcement", "Offer", "SignedAnnouncement"]


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one price by one provider; `fee` is per inference."""

    model_id: ModelId
    card: Card
    task: str
    fee: Amount


@dataclass(frozen=True, slots=True)
class Announcement:
    """`sequence` only grows, over restarts too; times are whole seconds since 1970 (UTC)."""

    peer_id: PeerId
    sequence: int
    addresses: tuple[str, ...]
    offers: tuple[Offer, ...]
    stake: Amount
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class SignedAnnouncement:
    """An announcement as it travels: canonical JSON and 64 bytes of Ed25519 over it."""

    payload: bytes
    signature: bytes
    announcement: Announcement
