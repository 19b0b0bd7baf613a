"""Credentials: the account by which a node pays and is paid, and what proves to others that it is its own.

What is signed here depends on the week only, so a node knows its own terms again without keeping them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from llmesh.core.address import Address
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.binding import KeyBinding, SignedBinding, bind, check_binding
from llmesh.core.ids import PeerId
from llmesh.core.receipt import NO_OFFER
from llmesh.core.signer import Signer
from llmesh.core.terms import (
    PERIOD,
    UNSTATED,
    SignedTerms,
    Terms,
    check_terms,
    expiry,
    sign_terms,
    terms_digest,
)
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed

__all__ = ["Credentials", "Payee", "class_of", "payee_of"]

_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """This node's account on the ledger it belongs to; `sign_as_node` is Ed25519 under the binding's domain.

    `salt` (32 bytes) is that of the channels by which it is paid; a node that was restored from a backup
    has another one, for it no longer knows what it signed on those of before.  Times are seconds since
    1970 (UTC).
    """

    node: PeerId
    chain: Chain
    signer: Signer
    sign_as_node: Callable[[bytes], bytes]
    salt: bytes = bytes(32)
    _terms: dict[Terms, tuple[SignedTerms, bytes]] = field(default_factory=dict)

    def binding(self, now: float) -> SignedBinding:
        """That the account is this node's."""
        record = KeyBinding(self.node, self.signer.address, self.chain, expiry(_period(now)))
        return bind(record, self.sign_as_node, self.signer.sign)

    def terms(self, offer: Offer, now: float) -> SignedTerms:
        """The terms of an offer, as they are signed in this period."""
        return self._signed(self._unsigned(offer, _period(now)))[0]

    def known_terms(self, offer: Offer, digest: bytes, now: float) -> SignedTerms | None:
        """The terms with this digest, if they are of this offer as it is, in this period or the last.

        Those of the next one are known too: the clock may have been put back since they were signed.
        """
        for period in (_period(now), _period(now) - 1, _period(now) + 1):
            signed, mark = self._signed(self._unsigned(offer, period))
            if mark == digest:
                return signed
        return None

    def _unsigned(self, offer: Offer, period: int) -> Terms:
        kind = class_of(offer)
        return Terms(self.signer.address, offer.model_id, kind, offer.fee, period, expiry(period))

    def _signed(self, terms: Terms) -> tuple[SignedTerms, bytes]:
        """Signed terms and their digest; once, for a signature is the same each time."""
        known = self._terms.get(terms)
        if known is None:
            if len(self._terms) >= _REMEMBERED:
                self._terms.clear()
            signed = sign_terms(terms, self.chain, self.signer.sign)
            known = self._terms[terms] = signed, terms_digest(terms, self.chain)
        return known


@dataclass(frozen=True, slots=True)
class Payee:
    """Who answers for an offer: its account, the ledger it counts on, its terms where it costs something.

    `offer` is what a receipt calls the terms.
    """

    account: Address
    chain: Chain
    terms: SignedTerms | None = None
    offer: bytes = NO_OFFER


def class_of(offer: Offer) -> str:
    """The execution class that receipts for an offer name."""
    return offer.execution or UNSTATED


def payee_of(announcement: Announcement, offer: Offer, now: float) -> Payee:
    """Who would sign the receipt for an announced offer.

    Raises ValidationFailed where the announcement does not say it, or says it without proof: an expired
    or forged binding, terms that are another's, for another price or forged.
    """
    signed, terms = announcement.account, offer.terms if offer.fee else None
    if signed is None:
        raise ValidationFailed("It does not say by which account it signs its receipts.")
    if offer.fee:
        _check_terms(signed.binding.account, offer, now)
    if signed.binding.not_after <= now:
        raise ValidationFailed("The binding of its account has expired.")
    payee = _proved(signed, terms)
    if isinstance(payee, str):
        raise ValidationFailed(payee)
    return payee


def _check_terms(account: Address, offer: Offer, now: float) -> None:
    if offer.terms is None:
        raise ValidationFailed("It asks a price and has not signed its terms.")
    terms = offer.terms.terms
    said = (terms.provider, terms.model, terms.execution_class, terms.price)
    if said != (account, offer.model_id, class_of(offer), offer.fee) or terms.not_after <= now:
        raise ValidationFailed("Its terms have expired or are not those of its offer.")


@lru_cache(maxsize=4096)
def _proved(signed: SignedBinding, terms: SignedTerms | None) -> Payee | str:
    """Whoever signatures prove it to be, or what is wrong with them; times are not looked at."""
    binding = signed.binding
    try:
        check_binding(signed, binding.not_after - 1)
        if terms is None:
            return Payee(binding.account, binding.chain)
        check_terms(terms, binding.chain)
        return Payee(binding.account, binding.chain, terms, terms_digest(terms.terms, binding.chain))
    except ValidationFailed as error:
        return error.message


def _period(now: float) -> int:
    return int(now // PERIOD)
