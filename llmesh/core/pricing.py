"""What an attempt may cost and what it does cost: rules only, no money moves here."""

from __future__ import annotations

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.errors import ModelNotFound

__all__ = ["FREE", "charge", "check_quote"]

FREE = Amount(0)
"""The fee of a node's own models for its own requests."""


def check_quote(offer: Offer, quote: Amount) -> None:
    """Refuse an attempt whose quote does not cover the fee.

    Raises ModelNotFound: at that price the model is not on offer here.  The consumer has usually
    read an announcement from before the fee rose, so another provider may still serve it.
    """
    if quote < offer.fee:
        raise ModelNotFound(
            f"{offer.card.name} costs {offer.fee} MESH here, above the quote of {quote} MESH."
        )


def charge(offer: Offer, chunks: int) -> Amount:
    """The fee for an answer of so many chunks: nothing delivered, nothing charged."""
    return offer.fee if chunks else FREE
