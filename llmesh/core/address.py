"""Addresses: 20 raw bytes that name a secp256k1 key, and their text for people (EIP-55)."""

from __future__ import annotations

import re
from typing import NewType

from llmesh import crypto
from llmesh.core.ids import PeerId, peer_id
from llmesh.errors import ValidationFailed

__all__ = ["NOBODY", "Address", "address", "address_from_text", "address_text", "recipient"]

Address = NewType("Address", bytes)
"""20 bytes: who owns, signs or is paid.  Text exists only where people read or write it."""

NOBODY = Address(bytes(20))
"""No key has it; in a channel it means that the payer signs vouchers with its own key."""

_TEXT = re.compile(r"0x[0-9a-fA-F]{40}\Z")


def address(raw: bytes) -> Address:
    """Check the size.  Raises ValidationFailed."""
    if len(raw) != 20:
        raise ValidationFailed(f"An address takes 20 bytes, not {len(raw)}.")
    return Address(raw)


def address_text(raw: Address) -> str:
    """`0x` and 40 hex digits whose case is a checksum (EIP-55)."""
    digits = raw.hex()
    mask = crypto.keccak256(digits.encode()).hex()
    return "0x" + "".join(d.upper() if m > "7" else d for d, m in zip(digits, mask, strict=False))


def address_from_text(text: str) -> Address:
    """The inverse; the case must be the checksum's, or all one case.  Raises ValidationFailed."""
    if not _TEXT.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not an address (0x and 40 hex digits).")
    digits = text[2:]
    raw = Address(bytes.fromhex(digits))
    if digits not in (digits.lower(), digits.upper()) and address_text(raw) != text:
        raise ValidationFailed(f"{text} is mistyped: its checksum does not fit.")
    return raw


def recipient(text: str) -> Address | PeerId:
    """Who is to get something, an account or a node.  Raises ValidationFailed for what is neither.

    An account must be written with its checksum: what goes to a mistyped one is lost.
    """
    if text.startswith("0x"):
        account = address_from_text(text)
        if address_text(account) != text:
            raise ValidationFailed(
                f"{text} lacks its checksum: write the account as `llmesh wallet` shows it, capitals too."
            )
        return account
    try:
        return peer_id(text)
    except ValidationFailed:
        raise ValidationFailed(
            f"{text[:80]!r} is neither an account (0x and 40 hex digits) nor a peer id (12D3KooW...)."
        ) from None
