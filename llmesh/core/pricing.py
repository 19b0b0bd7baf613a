"""What an attempt may cost and what it does cost: rules only, no money moves here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.encoding import Value
from llmesh.core.inference import ANSWER_TOKENS, Chunk
from llmesh.errors import ModelNotFound

__all__ = ["FREE", "check_quote", "cut_fee"]

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


def cut_fee(fee: Amount, asked: Mapping[str, Value], delivered: Sequence[Chunk]) -> Amount:
    """The fee for an answer that its consumer cut short after these chunks of it.

    The share that was delivered: its tokens, at least one a chunk, of the most that the request allowed
    (`ANSWER_TOKENS` where it did not say), rounded up to a micro-MESH.  Named values are a whole answer.
    """
    if any(chunk.values for chunk in delivered):
        return fee
    most = asked.get("max_tokens")
    tokens = sum(max(1, len(chunk.token_ids)) for chunk in delivered)
    limit = most if isinstance(most, int) and most > 0 else ANSWER_TOKENS
    return Amount(min(fee.micro, -(-fee.micro * tokens // limit)))
