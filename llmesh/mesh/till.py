"""Till: what a provider gives for its work, a receipt in its account's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmesh.core.announcement import Offer
from llmesh.core.credentials import Credentials, class_of
from llmesh.core.digest import values_digest
from llmesh.core.inference import Attempt, Chunk, output_of
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, SignedReceipt, Work, sign_receipt
from llmesh.errors import ModelFailed, ValidationFailed

__all__ = ["Till"]


class Till:
    """Signs receipts by this node's account; `clock` gives seconds since 1970."""

    def __init__(self, credentials: Credentials, clock: Callable[[], float]) -> None:
        self.credentials = credentials
        self._clock = clock

    def receipt(
        self, attempt: Attempt, offer: Offer, chunks: Iterable[Chunk], charge: Charge
    ) -> SignedReceipt:
        """The receipt of a whole answer.  Raises ModelFailed for one that holds no number (NaN)."""
        try:
            output = values_digest(output_of(chunks))
        except ValidationFailed as error:
            raise ModelFailed(f"The model's answer is no answer: {error.message}") from None
        work = Work(attempt.model_id, class_of(offer), values_digest(attempt.input), output)
        signer = self.credentials.signer
        receipt = Receipt(signer.address, attempt.id, NO_OFFER, work, charge, int(self._clock()))
        return sign_receipt(receipt, self.credentials.chain, signer.sign)
