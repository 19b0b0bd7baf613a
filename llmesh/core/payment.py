"""What payer and provider say to each other about money, as values.

What goes with a paid attempt, what is confirmed before any deposit, and how the two ends of a channel
come to agree again.  The rules are core.channel and core.payer; nothing in a message is verified yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmesh.core.amount import Amount
from llmesh.core.binding import SignedBinding
from llmesh.core.channel import Sync, SyncRequest
from llmesh.core.ids import ModelId
from llmesh.core.terms import SignedTerms
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher

__all__ = ["Answer", "Confirm", "Confirmed", "Payment", "Question", "Reconcile"]


@dataclass(frozen=True, slots=True)
class Payment:
    """How an attempt is paid: by which channel, under which terms (their digest).

    `voucher` may be absent where an earlier one covers the attempt too.
    """

    channel: ChannelId
    offer: bytes
    voucher: SignedVoucher | None = None


@dataclass(frozen=True, slots=True)
class Confirm:
    """Would you serve this model under these terms at this quote now?"""

    model: ModelId
    offer: bytes
    quote: Amount


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Yes, in the name of this account, by a channel of this salt (32 bytes)."""

    binding: SignedBinding
    terms: SignedTerms
    salt: bytes


@dataclass(frozen=True, slots=True)
class Reconcile:
    """The payer's end of a channel, and that it may speak for it: `binding` is of this peer.

    `deposit` is what the payer has seen on the ledger; the provider's copy may be behind.
    """

    config: ChannelConfig
    binding: SignedBinding
    request: SyncRequest
    deposit: Amount


Question: TypeAlias = Confirm | Reconcile
Answer: TypeAlias = Confirmed | Sync
