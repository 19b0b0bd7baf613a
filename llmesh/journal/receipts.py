"""Receipts as rows: one per attempt and end, with the output while a retry may still ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import SignedReceipt, read_receipt
from llmesh.core.voucher import ChannelId
from llmesh.errors import Conflict, TooLarge
from llmesh.journal.columns import Side, pack_amount

__all__ = [
    "FORGOTTEN_AT_ONCE",
    "MAX_OUTPUT",
    "ForgetOutputs",
    "ForgetReceipts",
    "ReceiptRow",
    "Spending",
    "StoreReceipt",
    "charged_attempts",
    "find_receipt",
    "find_receipts",
    "oldest_output",
    "oldest_receipt",
    "receipts_of",
    "spending",
]

MAX_OUTPUT = 64 << 10
"""Most bytes of an output that is kept for retries; do not keep a longer one."""

FORGOTTEN_AT_ONCE = 500
"""Rows that one commit forgets, so that it holds up the others for milliseconds only."""

_DAY = 86_400
_SELECT = "SELECT side, peer, signed, output FROM receipt"
_OF_ATTEMPT = f"{_SELECT} WHERE request = ? AND attempt = ? AND side = ?"


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt that this node gave (PROVIDER) or got (PAYER); TooLarge above `MAX_OUTPUT`."""

    side: Side
    peer: PeerId
    signed: SignedReceipt
    output: bytes | None = None

    def __post_init__(self) -> None:
        if self.output is not None and len(self.output) > MAX_OUTPUT:
            raise TooLarge(f"An output of {len(self.output)} bytes is not kept; {MAX_OUTPUT} are the most.")


@dataclass(frozen=True, slots=True)
class StoreReceipt:
    """Conflict if there is a receipt for this attempt with this peer already."""

    row: ReceiptRow

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row, receipt = self.row, self.row.signed.receipt
        db.execute(
            "INSERT INTO receipt (side, peer, request, attempt, model, fee, issued, signed, output)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                row.side, row.peer, *receipt.attempt, receipt.work.model, pack_amount(receipt.charge.price),
                float(receipt.issued_at), row.signed.packed, row.output,
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(
                f"Attempt {receipt.attempt.number} has its receipt already.",
                request_id=receipt.attempt.request,
            )


@dataclass(frozen=True, slots=True)
class ForgetOutputs:
    """Drop kept outputs issued before a time, at most `FORGOTTEN_AT_ONCE`; the receipts stay."""

    before: float

    def apply(self, db: apsw.Connection) -> None:
        """Empty the column."""
        db.execute(
            "UPDATE receipt SET output = NULL WHERE number IN (SELECT number FROM receipt"
            " WHERE output IS NOT NULL AND issued < ? ORDER BY issued LIMIT ?)",
            (self.before, FORGOTTEN_AT_ONCE),
        )


@dataclass(frozen=True, slots=True)
class ForgetReceipts:
    """Drop receipts issued before a time, at most `FORGOTTEN_AT_ONCE`."""

    before: float

    def apply(self, db: apsw.Connection) -> None:
        """Delete the rows."""
        db.execute(
            "DELETE FROM receipt WHERE number IN"
            " (SELECT number FROM receipt WHERE issued < ? ORDER BY issued LIMIT ?)",
            (self.before, FORGOTTEN_AT_ONCE),
        )


@dataclass(frozen=True, slots=True)
class Spending:
    """Fees of one model on one day (days since 1970, UTC), over `count` attempts."""

    day: int
    model: ModelId
    fees: Amount
    count: int


def find_receipt(
    db: apsw.Connection, side: Side, peer: PeerId, attempt: AttemptId, channel: ChannelId | None = None
) -> ReceiptRow | None:
    """The receipt of one attempt; an id that another peer used means nothing here.

    Unless it was on `channel`: an account may come back by another node, and what it has a receipt for
    is never signed for a second time.
    """
    rows = [_receipt(row) for row in db.execute(_OF_ATTEMPT, (*attempt, side))]
    ours = [row for row in rows if row.signed.charge.channel == channel] or rows
    return next((row for row in ours if channel == row.signed.charge.channel or row.peer == peer), None)


def charged_attempts(db: apsw.Connection, limit: int) -> list[AttemptId]:
    """Attempts that this node gave a receipt for, at most `limit` of them, in no order."""
    query = "SELECT request, attempt FROM receipt WHERE side = 'provider' LIMIT ?"
    return [AttemptId(RequestId(request), number) for request, number in db.execute(query, (limit,))]


def find_receipts(
    db: apsw.Connection, side: Side, peer: PeerId, attempts: Iterable[AttemptId], channel: ChannelId
) -> dict[AttemptId, SignedReceipt]:
    """The receipts of those attempts that have one on that channel, for a Sync."""
    found = (find_receipt(db, side, peer, attempt, channel) for attempt in attempts)
    return {row.signed.attempt: row.signed for row in found if row and row.signed.charge.channel == channel}


def receipts_of(db: apsw.Connection, request: RequestId) -> list[ReceiptRow]:
    """All receipts of one request, by attempt."""
    rows = db.execute(f"{_SELECT} WHERE request = ? ORDER BY attempt, number", (request,))
    return [_receipt(row) for row in rows]


def oldest_receipt(db: apsw.Connection) -> float | None:
    """When the oldest receipt was issued."""
    issued: float | None = db.execute("SELECT min(issued) FROM receipt").get
    return issued


def oldest_output(db: apsw.Connection) -> float | None:
    """When the oldest output that is still kept was issued."""
    issued: float | None = db.execute("SELECT min(issued) FROM receipt WHERE output IS NOT NULL").get
    return issued


def spending(db: apsw.Connection, side: Side, since: float) -> list[Spending]:
    """What this node paid, or as PROVIDER earned, since a time: by day, then model."""
    sums: dict[tuple[int, str], tuple[int, int]] = {}
    query = "SELECT issued, model, fee FROM receipt WHERE issued >= ? AND side = ?"
    for issued, model, fee in db.execute(query, (since, side)):
        key = int(issued // _DAY), model
        total, count = sums.get(key, (0, 0))
        sums[key] = total + int.from_bytes(fee, "big"), count + 1
    return [
        Spending(day, ModelId(model), Amount(total), count)
        for (day, model), (total, count) in sorted(sums.items())
    ]


def _receipt(row: tuple[Any, ...]) -> ReceiptRow:
    side, peer, signed, output = row
    return ReceiptRow(Side(side), PeerId(peer), read_receipt(signed), output)
