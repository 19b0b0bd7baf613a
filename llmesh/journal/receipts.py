"""Receipts as rows: one per attempt and end, with the output while a retry may still ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.errors import Conflict, TooLarge
from llmesh.journal.columns import Side, pack_amount, read_amount

__all__ = [
    "MAX_OUTPUT",
    "MAX_SIGNED",
    "ForgetOutputs",
    "ForgetReceipts",
    "ReceiptRow",
    "Spending",
    "StoreReceipt",
    "find_receipt",
    "oldest_output",
    "oldest_receipt",
    "receipts_of",
    "spending",
]

MAX_SIGNED = 4 << 10
"""Most bytes of a signed receipt."""

MAX_OUTPUT = 64 << 10
"""Most bytes of an output that is kept for retries; a longer one is not kept."""

FORGOTTEN_AT_ONCE = 500
"""Rows that one commit forgets, so that it holds up the others for milliseconds only."""

_DAY = 86_400
_SELECT = "SELECT side, peer, request, attempt, channel, model, fee, issued, signed, output FROM receipt"


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A signed receipt and what it is found and summed by.

    `side` is this node's, `peer` the other's; `channel` is None where no channel was charged;
    `issued` in seconds.  TooLarge above `MAX_SIGNED` or `MAX_OUTPUT`.
    """

    side: Side
    peer: PeerId
    request: RequestId
    attempt: int
    channel: bytes | None
    model: ModelId
    fee: Amount
    issued: float
    signed: bytes
    output: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.signed) > MAX_SIGNED or len(self.output or b"") > MAX_OUTPUT:
            raise TooLarge(f"A receipt has at most {MAX_SIGNED} bytes and a kept output {MAX_OUTPUT}.")


@dataclass(frozen=True, slots=True)
class StoreReceipt:
    """Conflict if there is a receipt for this attempt already: nothing is charged twice."""

    receipt: ReceiptRow

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row = self.receipt
        db.execute(
            "INSERT INTO receipt (side, peer, request, attempt, channel, model, fee, issued, signed, output)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                row.side, row.peer, row.request, row.attempt, row.channel,
                row.model, pack_amount(row.fee), row.issued, row.signed, row.output,
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(f"Attempt {row.attempt} has its receipt already.", request_id=row.request)


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
    """Fees of one model on one day (days since the epoch, UTC), over `count` attempts."""

    day: int
    model: ModelId
    fees: Amount
    count: int


def find_receipt(
    db: apsw.Connection, side: Side, peer: PeerId, request: RequestId, attempt: int
) -> ReceiptRow | None:
    """The receipt of one attempt; an id that another peer used means nothing here."""
    query = f"{_SELECT} WHERE request = ? AND attempt = ? AND side = ? AND peer = ?"
    return next((_receipt(row) for row in db.execute(query, (request, attempt, side, peer))), None)


def receipts_of(db: apsw.Connection, request: RequestId) -> list[ReceiptRow]:
    """All receipts of one request, by attempt."""
    query = f"{_SELECT} WHERE request = ? ORDER BY attempt, number"
    return [_receipt(row) for row in db.execute(query, (request,))]


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
    side, peer, request, attempt, channel, model, fee, issued, signed, output = row
    return ReceiptRow(
        Side(side), peer, request, attempt, channel, model, read_amount(fee), issued, signed, output
    )
