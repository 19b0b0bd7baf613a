"""Evidence: what proves by signatures alone that a provider cheated, so that its stake may be taken.

Only what nobody can be made to sign by mistake counts: two receipts for one attempt that differ, and a
receipt that charges more than its own signed terms, or for another model.  Receipts of what cost nothing
prove no double dealing: free work is done anew as often as it is asked for, and signed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.receipt import NO_CHARGE, RECEIPT_BYTES, SignedReceipt, check_receipt, read_receipt
from llmesh.core.terms import TERMS_BYTES, SignedTerms, check_terms, read_terms, terms_digest
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed

__all__ = ["Equivocation", "Evidence", "Overcharge", "case_of", "convict", "read_evidence"]


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different receipts of one provider for one attempt on one channel."""

    first: SignedReceipt
    second: SignedReceipt

    @property
    def packed(self) -> bytes:
        """Both receipts."""
        return self.first.packed + self.second.packed


@dataclass(frozen=True, slots=True)
class Overcharge:
    """A receipt above the price, or for another model than, the terms it was done under."""

    receipt: SignedReceipt
    terms: SignedTerms

    @property
    def packed(self) -> bytes:
        """The receipt, then the terms."""
        return self.receipt.packed + self.terms.packed


Evidence: TypeAlias = Equivocation | Overcharge


def convict(evidence: Evidence, chain: Chain) -> Address:
    """The address of the provider whose guilt this proves.

    Raises ValidationFailed where a signature is not genuine or nothing is proved.
    """
    if isinstance(evidence, Equivocation):
        return _equivocator(evidence, chain)
    return _overcharger(evidence, chain)


def case_of(evidence: Evidence) -> bytes:
    """32 bytes that name the offence: evidence for the same attempt is punished once, however packed."""
    receipt = evidence.first if isinstance(evidence, Equivocation) else evidence.receipt
    attempt = f"{receipt.attempt.request} {receipt.attempt.number}".encode()
    return crypto.keccak256(b"llmesh case" + receipt.receipt.provider + receipt.charge.channel + attempt)


def read_evidence(packed: bytes) -> Evidence:
    """The inverse of `packed`; checks the form only.  Raises ValidationFailed."""
    first, rest = packed[:RECEIPT_BYTES], packed[RECEIPT_BYTES:]
    if len(rest) == TERMS_BYTES:
        return Overcharge(read_receipt(first), read_terms(rest))
    return Equivocation(read_receipt(first), read_receipt(rest))


def _equivocator(evidence: Equivocation, chain: Chain) -> Address:
    first, second = evidence.first.receipt, evidence.second.receipt
    check_receipt(evidence.first, chain)
    check_receipt(evidence.second, chain)
    same = (first.provider, first.attempt, first.charge.channel)
    if same != (second.provider, second.attempt, second.charge.channel):
        raise ValidationFailed("The receipts are of two providers, attempts or channels.")
    if first.charge.channel == NO_CHARGE.channel:
        raise ValidationFailed("The receipts are for free work, which may be done twice.")
    if first == second:
        raise ValidationFailed("The receipts say the same.")
    return first.provider


def _overcharger(evidence: Overcharge, chain: Chain) -> Address:
    receipt, terms = evidence.receipt.receipt, evidence.terms.terms
    check_receipt(evidence.receipt, chain)
    check_terms(evidence.terms, chain)
    if (receipt.provider, receipt.offer) != (terms.provider, terms_digest(terms, chain)):
        raise ValidationFailed("The receipt was not issued under these terms.")
    if receipt.charge.price <= terms.price and receipt.work.model == terms.model:
        raise ValidationFailed("The receipt keeps to its terms.")
    return receipt.provider
