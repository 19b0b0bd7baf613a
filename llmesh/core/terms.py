"""Terms: the price of an offer, signed by the provider's secp256k1 key so that a contract can check it.

The announcement says what is on offer to people and routers; the terms are what a receipt's price is
held against, should it come to that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct

from llmesh.core import typed
from llmesh.core.address import Address, address
from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, model_id
from llmesh.core.typed import Chain, Sign, word
from llmesh.errors import ValidationFailed

__all__ = [
    "PERIOD", "TERMS_BYTES", "UNSTATED", "SignedTerms", "Terms", "check_terms", "class_word",
    "execution_class", "expiry", "read_terms", "sign_terms", "terms_digest",
]  # fmt: skip

PERIOD = 7 * 86_400
"""Seconds after which a provider signs its terms, and the binding of its account, anew."""
UNSTATED = "unstated"
"""The execution class of an offer that names none."""

_DOMAIN = b"LLMESH Terms"
_TERMS = typed.type_hash(
    "Terms(address provider,bytes32 model,bytes32 executionClass,uint128 maxPrice,uint64 sequence,"
    "uint64 notAfter)"
)
_PACKED = Struct(">20s32s32s16sQQ65s")
TERMS_BYTES = _PACKED.size
"""Signed terms on the wire."""
_CLASS = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")


@dataclass(frozen=True, slots=True)
class Terms:
    """At most `price` for one inference of this model in this execution class, until `not_after`.

    `sequence` is the announcement's; times are whole seconds since 1970 (UTC).
    """

    provider: Address
    model: ModelId
    execution_class: str
    price: Amount
    sequence: int
    not_after: int

    def __post_init__(self) -> None:
        address(self.provider)
        model_id(self.model)
        execution_class(self.execution_class)
        if not (0 <= self.sequence < 1 << 64 and 0 <= self.not_after < 1 << 64):
            raise ValidationFailed("The sequence and the expiry of terms must fit 64 bits.")


@dataclass(frozen=True, slots=True)
class SignedTerms:
    """Terms with 65 bytes of secp256k1 signature; nothing says yet that they are genuine."""

    terms: Terms
    signature: bytes

    @property
    def packed(self) -> bytes:
        """The fields in their order, big-endian, and the signature."""
        terms = self.terms
        return _PACKED.pack(
            terms.provider,
            bytes.fromhex(terms.model),
            class_word(terms.execution_class),
            terms.price.micro.to_bytes(16, "big"),
            terms.sequence,
            terms.not_after,
            self.signature,
        )


def execution_class(text: str) -> str:
    """Check the name of an execution class, such as `fp32-strict`.  Raises ValidationFailed."""
    if not _CLASS.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not an execution class (a to z, 0 to 9, '-', at most 32).")
    return text


def class_word(text: str) -> bytes:
    """The 32 bytes that stand for an execution class: its letters, then zeros."""
    return text.encode().ljust(32, b"\0")


def terms_digest(terms: Terms, chain: Chain) -> bytes:
    """What the signature covers, and what a receipt calls its offer."""
    words = (
        word(terms.provider),
        bytes.fromhex(terms.model),
        class_word(terms.execution_class),
        word(terms.price.micro),
        word(terms.sequence),
        word(terms.not_after),
    )
    return typed.digest(_DOMAIN, chain, typed.struct(_TERMS, *words))


def sign_terms(terms: Terms, chain: Chain, sign: Sign) -> SignedTerms:
    """Sign by the provider's key."""
    return SignedTerms(terms, sign(terms_digest(terms, chain)))


def check_terms(signed: SignedTerms, chain: Chain) -> None:
    """Refuse terms that the provider they name has not signed for this chain.  Raises ValidationFailed."""
    if typed.signer_of(terms_digest(signed.terms, chain), signed.signature, "terms") != signed.terms.provider:
        raise ValidationFailed("The terms are not signed by the provider that they name.")


def read_terms(packed: bytes) -> SignedTerms:
    """The inverse of `packed`; checks the form only.  Raises ValidationFailed."""
    if len(packed) != TERMS_BYTES:
        raise ValidationFailed(f"Terms take {TERMS_BYTES} bytes, not {len(packed)}.")
    provider, model, name, price, sequence, not_after, signature = _PACKED.unpack(packed)
    terms = Terms(
        Address(provider),
        ModelId(model.hex()),
        execution_class(name.rstrip(b"\0").decode("latin-1")),
        Amount(int.from_bytes(price, "big")),
        sequence,
        not_after,
    )
    return SignedTerms(terms, signature)


def expiry(period: int) -> int:
    """When what is signed in the so-many-th `PERIOD` since 1970 expires: at the end of the next one."""
    return (period + 2) * PERIOD
