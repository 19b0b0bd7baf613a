"""Operations: what an account's owner may ask of the ledger, each signed, each once.

They mirror the calls of the contracts that would keep the same books on an EVM chain.  Import the
module and write `operations.Deposit`; what they do to the books is core.rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any, NamedTuple, TypeAlias

from llmesh import crypto
from llmesh.core import fields, typed
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.encoding import Json
from llmesh.core.evidence import Evidence, read_evidence
from llmesh.core.invite import SignedCredit, read_credit
from llmesh.core.typed import Chain, Sign
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, channel_id, read_voucher
from llmesh.errors import ValidationFailed

__all__ = [
    "MAX_CLAIMS", "Bond", "Claim", "ClaimItem", "Deposit", "FinalizeWithdraw", "InitiateWithdraw", "Mint",
    "Operation", "Redeem", "Refund", "Settle", "SignedOperation", "Slash", "StartUnbond", "Transfer",
    "Withdraw", "check_operation", "config_from_json", "config_to_json", "operation_from_json",
    "operation_to_json", "sign_operation", "unsigned_from_json", "unsigned_to_json",
]  # fmt: skip

MAX_CLAIMS = 100
"""Channels in one claim."""
_DOMAIN = b"LLMESH Ledger"
_BY_WHOM = ("actor", "nonce", "signature")


@dataclass(frozen=True, slots=True)
class Mint:
    """New money for somebody; the issuer only."""

    to: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class Redeem:
    """Take the credit of an invite from the issuer's balance."""

    credit: SignedCredit


@dataclass(frozen=True, slots=True)
class Transfer:
    """From the actor to somebody."""

    to: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class Deposit:
    """Open a channel, or add to it; the payer only."""

    config: ChannelConfig
    amount: Amount


@dataclass(frozen=True, slots=True)
class ClaimItem:
    """Of one channel: `total` in all was charged, under this voucher."""

    voucher: SignedVoucher
    total: Amount


@dataclass(frozen=True, slots=True)
class Claim:
    """Set aside for their receivers what channels owe; a receiver, or who it lets claim."""

    items: tuple[ClaimItem, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Pay out all that was claimed for a receiver; anybody."""

    receiver: Address


@dataclass(frozen=True, slots=True)
class Refund:
    """Give back, at once, what is not claimed, at most `amount`; a receiver, or who it lets claim."""

    channel: ChannelId
    amount: Amount


@dataclass(frozen=True, slots=True)
class InitiateWithdraw:
    """Announce taking a deposit out after the channel's delay; the payer, or who signs for it."""

    channel: ChannelId
    amount: Amount


@dataclass(frozen=True, slots=True)
class FinalizeWithdraw:
    """Take it out, as far as it is not claimed; the payer, or who signs for it."""

    channel: ChannelId


@dataclass(frozen=True, slots=True)
class Bond:
    """From the actor's balance to its stake."""

    amount: Amount


@dataclass(frozen=True, slots=True)
class StartUnbond:
    """Stop a part of the stake from counting; it is free after the unbonding time."""

    amount: Amount


@dataclass(frozen=True, slots=True)
class Withdraw:
    """From the unbonded stake to the actor's balance."""


@dataclass(frozen=True, slots=True)
class Slash:
    """Take the stake of a provider that is proved to have cheated; anybody, who gets half of it."""

    evidence: Evidence


Operation: TypeAlias = (
    Mint | Redeem | Transfer | Deposit | Claim | Settle | Refund | InitiateWithdraw | FinalizeWithdraw
    | Bond | StartUnbond | Withdraw | Slash
)  # fmt: skip
_KINDS: dict[str, type[Operation]] = {
    "mint": Mint, "redeem": Redeem, "transfer": Transfer, "deposit": Deposit, "claim": Claim,
    "settle": Settle, "refund": Refund, "initiate-withdraw": InitiateWithdraw,
    "finalize-withdraw": FinalizeWithdraw, "bond": Bond, "start-unbond": StartUnbond,
    "withdraw": Withdraw, "slash": Slash,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class SignedOperation:
    """An operation by `actor`, its `nonce`-th (they count from 1), with 65 bytes of its signature."""

    actor: Address
    nonce: int
    operation: Operation
    signature: bytes


class _Form(NamedTuple):
    """How a field is signed, as which Solidity type, and how it is written."""

    solidity: str
    word: Callable[[Any, Chain], bytes]
    write: Callable[[Any], Json]
    read: Callable[[Json], Any]


def config_to_json(config: ChannelConfig) -> Json:
    """A channel's seven parts in their order."""
    values = [getattr(config, name) for name in config.__slots__]
    return [value if isinstance(value, int) else value.hex() for value in values]


def config_from_json(value: Json) -> ChannelConfig:
    """The inverse; checks the form only.  Raises ValidationFailed."""
    items = fields.listed(value, 7)
    if len(items) != 7:
        raise ValidationFailed("A channel's configuration has seven parts.")
    payer, signer, receiver, claimer, token = (_read_address(item) for item in items[:5])
    delay, salt = fields.whole(items[5]), fields.hexed(items[6], 32)
    return ChannelConfig(payer, signer, receiver, claimer, token, delay, salt)


def _read_address(value: Json) -> Address:
    return Address(fields.hexed(value, 20))


def _read_claims(value: Json) -> tuple[ClaimItem, ...]:
    items = []
    for item in fields.listed(value, MAX_CLAIMS):
        packed = fields.hexed(item)
        items.append(ClaimItem(read_voucher(packed[:-16]), Amount(int.from_bytes(packed[-16:], "big"))))
    return tuple(items)


def _pack_claim(item: ClaimItem) -> bytes:
    return item.voucher.packed + item.total.micro.to_bytes(16, "big")


_FORMS: dict[str, _Form] = {
    "to": _Form("address", lambda v, _: typed.word(v), bytes.hex, _read_address),
    "receiver": _Form("address", lambda v, _: typed.word(v), bytes.hex, _read_address),
    "amount": _Form("uint128", lambda v, _: typed.word(v.micro), lambda v: str(v.micro), fields.amount),
    "channel": _Form("bytes32", lambda v, _: v, bytes.hex, lambda v: ChannelId(fields.hexed(v, 32))),
    "config": _Form("bytes32", channel_id, config_to_json, config_from_json),
    "credit": _Form(
        "bytes32",
        lambda v, _: crypto.keccak256(v.packed),
        lambda v: v.packed.hex(),
        lambda v: read_credit(fields.hexed(v)),
    ),
    "evidence": _Form(
        "bytes32",
        lambda v, _: crypto.keccak256(v.packed),
        lambda v: v.packed.hex(),
        lambda v: read_evidence(fields.hexed(v)),
    ),
    "items": _Form(
        "bytes32",
        lambda v, _: crypto.keccak256(b"".join(map(_pack_claim, v))),
        lambda v: [_pack_claim(item).hex() for item in v],
        _read_claims,
    ),
}
"""By the name of the field, which means the same in every operation."""

_TYPES = {
    kind: typed.type_hash(
        f"{kind.__name__}(address actor,uint64 nonce"
        + "".join(f",{_FORMS[field.name].solidity} {field.name}" for field in fields_of(kind))
        + ")"
    )
    for kind in _NAMES
}


def sign_operation(
    actor: Address, nonce: int, operation: Operation, chain: Chain, sign: Sign
) -> SignedOperation:
    """Sign by the actor's key, for this ledger only."""
    return SignedOperation(actor, nonce, operation, sign(_digest(actor, nonce, operation, chain)))


def check_operation(signed: SignedOperation, chain: Chain) -> None:
    """Refuse an operation that its actor has not signed for this ledger.  Raises ValidationFailed."""
    wanted = _digest(signed.actor, signed.nonce, signed.operation, chain)
    if typed.signer_of(wanted, signed.signature, "an operation") != signed.actor:
        raise ValidationFailed("The operation is not signed by the account that it names.")


def unsigned_to_json(operation: Operation) -> dict[str, Json]:
    """An operation that nobody has signed yet."""
    written = {
        field.name: _FORMS[field.name].write(getattr(operation, field.name)) for field in fields_of(operation)
    }
    return {"operation": _NAMES[type(operation)], **written}


def unsigned_from_json(value: Json) -> Operation:
    """The inverse; checks the form only.  Raises ValidationFailed."""
    record = value if isinstance(value, dict) else {}
    kind = _KINDS.get(str(record.get("operation")))
    if kind is None:
        raise ValidationFailed("That is not an operation of the ledger.")
    names = [field.name for field in fields_of(kind)]
    fields.exactly(record, {"operation", *names})
    operation: Operation = kind(**{name: _FORMS[name].read(record[name]) for name in names})
    return operation


def operation_to_json(signed: SignedOperation) -> dict[str, Json]:
    """As it stands in the log and travels to the issuer."""
    return {
        "actor": signed.actor.hex(),
        "nonce": signed.nonce,
        "signature": signed.signature.hex(),
        **unsigned_to_json(signed.operation),
    }


def operation_from_json(value: Json) -> SignedOperation:
    """The inverse; checks the form only.  Raises ValidationFailed."""
    record = value if isinstance(value, dict) else {}
    operation = unsigned_from_json({k: v for k, v in record.items() if k not in _BY_WHOM})
    fields.exactly(record, {*_BY_WHOM, "operation", *(field.name for field in fields_of(operation))})
    return SignedOperation(
        Address(fields.hexed(record["actor"], 20)),
        fields.whole(record["nonce"]),
        operation,
        fields.hexed(record["signature"], typed.SIGNATURE_BYTES),
    )


def _digest(actor: Address, nonce: int, operation: Operation, chain: Chain) -> bytes:
    words = [_FORMS[field.name].word(getattr(operation, field.name), chain) for field in fields_of(operation)]
    content = typed.struct(_TYPES[type(operation)], typed.word(actor), typed.word(nonce), *words)
    return typed.digest(_DOMAIN, chain, content)
