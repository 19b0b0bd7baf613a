"""How values stand in the journal's columns, in one place.

An amount is 16 bytes, the most significant first: exact up to 2**128 - 1, and SQLite orders such
blobs as it would order the numbers.  Vouchers and receipts stand packed as on the wire, and none is
an empty blob.  Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from enum import StrEnum
from struct import Struct

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.receipt import SignedReceipt, read_receipt
from llmesh.core.voucher import ChannelConfig, SignedVoucher, read_voucher

__all__ = [
    "Side",
    "pack_amount",
    "pack_config",
    "pack_signed",
    "read_amount",
    "read_best",
    "read_config",
    "read_last",
]

_WIDTH = 16
_CONFIG = Struct(">20s20s20s20s20sQ32s")


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


def pack_config(config: ChannelConfig) -> bytes:
    """The fields in their order, big-endian."""
    return _CONFIG.pack(
        config.payer,
        config.payer_authorizer,
        config.receiver,
        config.receiver_authorizer,
        config.token,
        config.withdraw_delay,
        config.salt,
    )


def read_config(column: bytes) -> ChannelConfig:
    """The inverse of `pack_config`."""
    payer, payer_key, receiver, receiver_key, token, delay, salt = _CONFIG.unpack(column)
    return ChannelConfig(
        Address(payer),
        Address(payer_key),
        Address(receiver),
        Address(receiver_key),
        Address(token),
        delay,
        salt,
    )


def pack_signed(signed: SignedVoucher | SignedReceipt | None) -> bytes:
    """As on the wire; empty for none."""
    return signed.packed if signed else b""


def read_best(column: bytes) -> SignedVoucher | None:
    """A channel's best voucher."""
    return read_voucher(column) if column else None


def read_last(column: bytes) -> SignedReceipt | None:
    """A channel's last receipt."""
    return read_receipt(column) if column else None
