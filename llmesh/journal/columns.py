"""How values stand in the journal's columns, in one place.

An amount is 16 bytes, the most significant first: exact up to 2**128 - 1, and SQLite orders such
blobs as it would order the numbers.  Vouchers and receipts stand packed as on the wire, and none is
an empty blob.  Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from enum import StrEnum

from llmesh.core.amount import Amount
from llmesh.core.receipt import SignedReceipt, read_receipt
from llmesh.core.voucher import SignedVoucher, read_voucher

__all__ = [
    "Side",
    "pack_amount",
    "pack_signed",
    "read_amount",
    "read_best",
    "read_last",
]

_WIDTH = 16


class Side(StrEnum):
    """Which end of a channel or a receipt this node is."""

    PAYER = "payer"
    PROVIDER = "provider"


def pack_amount(amount: Amount) -> bytes:
    """16 bytes, big-endian."""
    return amount.micro.to_bytes(_WIDTH, "big")


def read_amount(column: bytes) -> Amount:
    """The amount of a column; the schema lets no other width in."""
    return Amount(int.from_bytes(column, "big"))


def pack_signed(signed: SignedVoucher | SignedReceipt | None) -> bytes:
    """As on the wire; empty for none."""
    return signed.packed if signed else b""


def read_best(column: bytes) -> SignedVoucher | None:
    """A channel's best voucher."""
    return read_voucher(column) if column else None


def read_last(column: bytes) -> SignedReceipt | None:
    """A channel's last receipt."""
    return read_receipt(column) if column else None
