"""Invite: one printable line by which a machine joins a swarm, with a credit if its issuer gives one.

Whoever holds the line may take its credit, once; it is to be sent like money.  Addresses are hints:
what is believed is the genesis that the line names, and the issuer's signature on the credit.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from struct import Struct

from llmesh import crypto
from llmesh.core import typed
from llmesh.core.address import Address, address
from llmesh.core.amount import Amount
from llmesh.core.genesis import chain_of
from llmesh.core.typed import Chain, Sign, word
from llmesh.errors import ValidationFailed

__all__ = [
    "CREDIT_BYTES", "MAX_ADDRESSES", "Credit", "Invite", "SignedCredit", "check_credit", "invite_from_text",
    "invite_text", "read_credit", "sign_credit",
]  # fmt: skip

MAX_ADDRESSES = 16
PREFIX = "llmesh1-"
"""What every invite begins with; the digit is the version."""
_MAX_TEXT = 8192
_DOMAIN = b"LLMESH Credit"
_CREDIT = typed.type_hash("Credit(bytes16 id,uint128 amount,uint64 expiresAt)")
_PACKED = Struct(">16s16sQ65s")
CREDIT_BYTES = _PACKED.size
"""A signed credit on the wire."""
_HEAD = Struct(">32s20sQ?B")
_CHECK_BYTES = 4


@dataclass(frozen=True, slots=True)
class Credit:
    """So much from the issuer's balance for whoever brings it first, until `expires_at` (seconds)."""

    id: bytes
    amount: Amount
    expires_at: int

    def __post_init__(self) -> None:
        if len(self.id) != 16 or not 0 <= self.expires_at < 1 << 64:
            raise ValidationFailed("A credit has an id of 16 bytes and an expiry of 64 bits.")


@dataclass(frozen=True, slots=True)
class SignedCredit:
    """A credit with 65 bytes of secp256k1 signature; nothing says yet that it is genuine."""

    credit: Credit
    signature: bytes

    @property
    def packed(self) -> bytes:
        """Id, amount (16 bytes), expiry (8), big-endian, and the signature."""
        credit = self.credit
        amount = credit.amount.micro.to_bytes(16, "big")
        return _PACKED.pack(credit.id, amount, credit.expires_at, self.signature)


@dataclass(frozen=True, slots=True)
class Invite:
    """Where members are (multiaddrs with peer ids), which genesis, whose, until when, and the credit."""

    addresses: tuple[str, ...]
    genesis: bytes
    issuer: Address
    expires_at: int
    credit: SignedCredit | None = None

    def __post_init__(self) -> None:
        address(self.issuer)
        if len(self.genesis) != 32 or not 0 <= self.expires_at < 1 << 64:
            raise ValidationFailed("An invite names a genesis by 32 bytes and expires in 64 bits.")
        if not 0 < len(self.addresses) <= MAX_ADDRESSES:
            raise ValidationFailed(f"An invite has 1 to {MAX_ADDRESSES} addresses.")
        if not all(0 < len(text.encode()) < 256 and text.isprintable() for text in self.addresses):
            raise ValidationFailed("An address of an invite takes 1 to 255 printable characters.")

    @property
    def chain(self) -> Chain:
        """The ledger it invites to."""
        return chain_of(self.genesis, self.issuer)


def sign_credit(credit: Credit, chain: Chain, sign: Sign) -> SignedCredit:
    """Sign by the issuer's key."""
    return SignedCredit(credit, sign(_digest(credit, chain)))


def check_credit(signed: SignedCredit, chain: Chain) -> None:
    """Refuse a credit that the issuer of this ledger has not signed.  Raises ValidationFailed."""
    if typed.signer_of(_digest(signed.credit, chain), signed.signature, "a credit") != chain.contract:
        raise ValidationFailed("The credit is not signed by the issuer of this ledger.")


def read_credit(packed: bytes) -> SignedCredit:
    """The inverse of `packed`; checks the form only.  Raises ValidationFailed."""
    if len(packed) != CREDIT_BYTES:
        raise ValidationFailed(f"A credit takes {CREDIT_BYTES} bytes, not {len(packed)}.")
    mark, amount, expires_at, signature = _PACKED.unpack(packed)
    return SignedCredit(Credit(mark, Amount(int.from_bytes(amount, "big")), expires_at), signature)


def invite_text(invite: Invite) -> str:
    """The line to print: `llmesh1-` and base64url, with a checksum against mistyping at its end."""
    head = _HEAD.pack(
        invite.genesis, invite.issuer, invite.expires_at, invite.credit is not None, len(invite.addresses)
    )
    places = b"".join(bytes((len(text.encode()),)) + text.encode() for text in invite.addresses)
    body = head + (invite.credit.packed if invite.credit else b"") + places
    return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def invite_from_text(line: str, now: float) -> Invite:
    """Read a line that somebody pasted, white space around and inside it forgiven.

    Raises ValidationFailed for what is no invite, is damaged, has expired at `now` (seconds since 1970),
    or brings a credit that is not its issuer's.
    """
    text = "".join(line.split()) if len(line) <= _MAX_TEXT else ""
    if not text.startswith(PREFIX):
        raise ValidationFailed(f"An invite is one line that begins with {PREFIX}; copy the whole of it.")
    invite = _read_body(_decode(text.removeprefix(PREFIX)))
    if invite.expires_at <= now:
        raise ValidationFailed("The invite has expired; ask for a new one.")
    if invite.credit is not None:
        check_credit(invite.credit, invite.chain)
    return invite


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not body or _check(body) != check:
        raise ValidationFailed("The invite is damaged: a part of the line is missing or mistyped.")
    return body


def _read_body(body: bytes) -> Invite:
    if len(body) < _HEAD.size:
        raise ValidationFailed("The invite is too short.")
    genesis, issuer, expires_at, has_credit, count = _HEAD.unpack(body[: _HEAD.size])
    rest = body[_HEAD.size :]
    credit = None
    if has_credit:
        credit, rest = read_credit(rest[:CREDIT_BYTES]), rest[CREDIT_BYTES:]
    return Invite(_places(rest, count), genesis, Address(issuer), expires_at, credit)


def _places(data: bytes, count: int) -> tuple[str, ...]:
    places = []
    for _ in range(count):
        size = data[0] if data else 0
        places.append(data[1 : 1 + size].decode("utf-8", "replace"))
        data = data[1 + size :]
    if data:
        raise ValidationFailed("The invite is longer than what it says.")
    return tuple(places)


def _check(body: bytes) -> bytes:
    return crypto.keccak256(b"llmesh invite" + body)[:_CHECK_BYTES]


def _digest(credit: Credit, chain: Chain) -> bytes:
    words = (credit.id.ljust(32, b"\0"), word(credit.amount.micro), word(credit.expires_at))
    return typed.digest(_DOMAIN, chain, typed.struct(_CREDIT, *words))
