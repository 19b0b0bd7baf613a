"""Receipts: what a provider did and charged, in its own signature, to be checked by anyone offline.

It commits to the model, the input and the output by their digests and holds none of them.  Free work
has a receipt too, with no channel and no price.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from llmesh.core import typed
from llmesh.core.address import Address, address
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, RequestId, model_id, request_id
from llmesh.core.terms import class_word, execution_class
from llmesh.core.typed import Chain, Sign, word
from llmesh.core.voucher import ChannelId
from llmesh.errors import ValidationFailed

__all__ = [
    "NO_CHARGE", "NO_OFFER", "RECEIPT_BYTES", "Charge", "Receipt", "SignedReceipt", "Work", "check_answer",
    "check_receipt", "read_receipt", "receipt_digest", "sign_receipt",
]  # fmt: skip

_DOMAIN = b"LLMESH Receipts"
_RECEIPT = typed.type_hash(
    "Receipt(address provider,bytes16 requestId,uint32 attempt,bytes32 offer,bytes32 model,"
    "bytes32 executionClass,bytes32 inputDigest,bytes32 outputDigest,bytes32 channelId,uint64 sequence,"
    "uint128 price,uint128 cumulative,uint64 issuedAt)"
)
_PACKED = Struct(">20s16sI32s32s32s32s32s32sQ16s16sQ65s")
RECEIPT_BYTES = _PACKED.size
"""A signed receipt on the wire."""

NO_OFFER = bytes(32)
"""The offer of work that no signed terms cover."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was done: which model, how exactly, on which input, with which output (BLAKE3, 32 bytes)."""

    model: ModelId
    execution_class: str
    input_digest: bytes
    output_digest: bytes

    def __post_init__(self) -> None:
        model_id(self.model)
        execution_class(self.execution_class)
        if len(self.input_digest) != 32 or len(self.output_digest) != 32:
            raise ValidationFailed("A digest of input or output takes 32 bytes.")


@dataclass(frozen=True, slots=True)
class Charge:
    """What was charged: `price` for this, `cumulative` on the channel so far, `sequence` counts from 1."""

    channel: ChannelId
    sequence: int
    price: Amount
    cumulative: Amount

    def __post_init__(self) -> None:
        if len(self.channel) != 32 or not 0 <= self.sequence < 1 << 64:
            raise ValidationFailed("A charge names a channel by 32 bytes and counts in 64 bits.")
        if self.price > self.cumulative:
            raise ValidationFailed(f"A price of {self.price} is above the {self.cumulative} charged in all.")


NO_CHARGE = Charge(ChannelId(bytes(32)), 0, Amount(0), Amount(0))
"""What free work costs."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """One attempt's work and charge; `offer` is the digest of the terms it was done under.

    `issued_at` is the provider's clock in whole seconds since 1970 (UTC); no rule of money asks it.
    """

    provider: Address
    attempt: AttemptId
    offer: bytes
    work: Work
    charge: Charge
    issued_at: int

    def __post_init__(self) -> None:
        address(self.provider)
        request_id(self.attempt.request)
        if not 0 < self.attempt.number < 1 << 32:
            raise ValidationFailed("Attempts count from 1, in 32 bits.")
        if len(self.offer) != 32 or not 0 <= self.issued_at < 1 << 64:
            raise ValidationFailed("A receipt names its offer by 32 bytes and its time in 64 bits.")


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt with 65 bytes of secp256k1 signature; nothing says yet that it is genuine."""

    receipt: Receipt
    signature: bytes

    @property
    def charge(self) -> Charge:
        """What it charges."""
        return self.receipt.charge

    @property
    def attempt(self) -> AttemptId:
        """What it is for."""
        return self.receipt.attempt

    @property
    def packed(self) -> bytes:
        """The fields in their order, big-endian, and the signature."""
        receipt, work, charge = self.receipt, self.receipt.work, self.charge
        return _PACKED.pack(
            receipt.provider,
            bytes.fromhex(receipt.attempt.request),
            receipt.attempt.number,
            receipt.offer,
            bytes.fromhex(work.model),
            class_word(work.execution_class),
            work.input_digest,
            work.output_digest,
            charge.channel,
            charge.sequence,
            charge.price.micro.to_bytes(16, "big"),
            charge.cumulative.micro.to_bytes(16, "big"),
            receipt.issued_at,
            self.signature,
        )


def receipt_digest(receipt: Receipt, chain: Chain) -> bytes:
    """What the signature covers: EIP-712 under the domain `LLMESH Receipts` of the provider's chain."""
    work, charge = receipt.work, receipt.charge
    words = (
        word(receipt.provider),
        bytes.fromhex(receipt.attempt.request).ljust(32, b"\0"),
        word(receipt.attempt.number),
        receipt.offer,
        bytes.fromhex(work.model),
        class_word(work.execution_class),
        work.input_digest,
        work.output_digest,
        charge.channel,
        word(charge.sequence),
        word(charge.price.micro),
        word(charge.cumulative.micro),
        word(receipt.issued_at),
    )
    return typed.digest(_DOMAIN, chain, typed.struct(_RECEIPT, *words))


def sign_receipt(receipt: Receipt, chain: Chain, sign: Sign) -> SignedReceipt:
    """Sign by the provider's key."""
    return SignedReceipt(receipt, sign(receipt_digest(receipt, chain)))


def check_receipt(signed: SignedReceipt, chain: Chain) -> None:
    """Refuse a receipt that the provider it names has not signed for this chain.

    Whose address that is, a key binding says.  Raises ValidationFailed.
    """
    who = typed.signer_of(receipt_digest(signed.receipt, chain), signed.signature, "a receipt")
    if who != signed.receipt.provider:
        raise ValidationFailed("The receipt is not signed by the provider that it names.")


def check_answer(receipt: Receipt, provider: Address, attempt: AttemptId, work: Work, quote: Amount) -> None:
    """Refuse a genuine receipt that is not for this answer, or charges more than was agreed to.

    `work` is what the consumer asked for and got.  Raises ValidationFailed, which names the field.
    """
    pairs = {
        "provider": (receipt.provider, provider),
        "attempt": (receipt.attempt, attempt),
        "model": (receipt.work.model, work.model),
        "execution class": (receipt.work.execution_class, work.execution_class),
        "input": (receipt.work.input_digest, work.input_digest),
        "output": (receipt.work.output_digest, work.output_digest),
    }
    for field, (got, wanted) in pairs.items():
        if got != wanted:
            raise ValidationFailed(f"The receipt is for another {field}.")
    if receipt.charge.price > quote:
        raise ValidationFailed(f"The receipt charges {receipt.charge.price}, above the quote of {quote}.")


def read_receipt(packed: bytes) -> SignedReceipt:
    """The inverse of `packed`; checks the form only.  Raises ValidationFailed."""
    if len(packed) != RECEIPT_BYTES:
        raise ValidationFailed(f"A receipt takes {RECEIPT_BYTES} bytes, not {len(packed)}.")
    (provider, request, number, offer, model, name, *digests, channel, sequence, price, cumulative,
     issued_at, signature) = _PACKED.unpack(packed)  # fmt: skip
    work = Work(
        ModelId(model.hex()), execution_class(name.rstrip(b"\0").decode("latin-1")), digests[0], digests[1]
    )
    charge = Charge(
        ChannelId(channel),
        sequence,
        Amount(int.from_bytes(price, "big")),
        Amount(int.from_bytes(cumulative, "big")),
    )
    attempt = AttemptId(RequestId(request.hex()), number)
    return SignedReceipt(Receipt(Address(provider), attempt, offer, work, charge, issued_at), signature)
