"""Two keys, a channel between them, and receipts on it, for tests of money."""

from __future__ import annotations

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit, ProviderBooks, ProviderChannel
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.payer import PayerBooks, PayerChannel
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, SignedReceipt, Work, sign_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig

PAYER_SECRET, PROVIDER_SECRET, STRANGER_SECRET = (bytes(31) + bytes((n,)) for n in (1, 2, 3))
SIGN_AS_PAYER, SIGN_AS_PROVIDER, SIGN_AS_STRANGER = (
    crypto.signer(secret) for secret in (PAYER_SECRET, PROVIDER_SECRET, STRANGER_SECRET)
)
PAYER, PROVIDER, STRANGER = (
    Address(crypto.address_of(secret)) for secret in (PAYER_SECRET, PROVIDER_SECRET, STRANGER_SECRET)
)
ISSUER = Address(b"i" * 20)
CHAIN = Chain((1 << 40) + 1, ISSUER)
OTHER_CHAIN = Chain((1 << 40) + 2, ISSUER)
CONFIG = ChannelConfig(PAYER, PAYER, PROVIDER, PROVIDER, ISSUER, 86_400, bytes(32))
WORK = Work(ModelId("ab" * 32), "fp32-strict", b"i" * 32, b"o" * 32)


def micro(number: int) -> Amount:
    return Amount(number)


def attempt(number: int, of_request: int = 1) -> AttemptId:
    return AttemptId(RequestId(f"{number:032x}"), of_request)


def receipt_for(of: AttemptId, charge: Charge, work: Work = WORK, offer: bytes = NO_OFFER) -> SignedReceipt:
    receipt = Receipt(PROVIDER, of, offer, work, charge, 1_800_000_000)
    return sign_receipt(receipt, CHAIN, SIGN_AS_PROVIDER)


def payer(deposit: int = 1000, books: PayerBooks | None = None) -> PayerChannel:
    return PayerChannel(CONFIG, CHAIN, Deposit(Amount(deposit)), books)


def provider(deposit: int = 1000, books: ProviderBooks = ProviderBooks()) -> ProviderChannel:  # noqa: B008
    return ProviderChannel(CONFIG, CHAIN, Deposit(Amount(deposit)), books)
