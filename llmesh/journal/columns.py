"""How values stand in the journal's columns, in one place.

An amount is 16 bytes, the most significant first: exact up to 2**128 - 1, and SQLite orders such
blobs as it would order the numbers.  Times are seconds since the epoch.
"""

from __future__ import annotations

from enum import StrEnum

from llmesh.core.amount import Amount

__all__ = ["Side", "pack_amount", "read_amount"]

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
