"""Budgets over restarts: how far each purse may have spent, as a high-water mark per day.

A purse spends only below its mark, and raises it durably by a block of fees before it goes
further.  After a crash it counts as spent up to the mark: never over the budget, at most one block
short.  A clean stop settles the mark at what was really spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from llmesh.core.amount import Amount
from llmesh.journal.columns import pack_amount, read_amount

__all__ = ["ForgetMarks", "RaiseMark", "SettleMark", "find_mark", "marks_of"]

_NONE = Amount(0)
_STORE = "INSERT INTO mark VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET spent = "


@dataclass(frozen=True, slots=True)
class RaiseMark:
    """The purse may now spend up to `spent` on that day (days since the epoch); never lowers."""

    purse: str
    day: int
    spent: Amount

    def apply(self, db: apsw.Connection) -> None:
        """Keep the higher mark."""
        db.execute(f"{_STORE} max(spent, excluded.spent)", (self.purse, self.day, pack_amount(self.spent)))


@dataclass(frozen=True, slots=True)
class SettleMark:
    """The purse has spent exactly that much and spends no more in this process."""

    purse: str
    day: int
    spent: Amount

    def apply(self, db: apsw.Connection) -> None:
        """Overwrite the mark."""
        db.execute(f"{_STORE} excluded.spent", (self.purse, self.day, pack_amount(self.spent)))


@dataclass(frozen=True, slots=True)
class ForgetMarks:
    """Drop the marks of days before `day`."""

    day: int

    def apply(self, db: apsw.Connection) -> None:
        """Delete the rows."""
        db.execute("DELETE FROM mark WHERE day < ?", (self.day,))


def find_mark(db: apsw.Connection, purse: str, day: int) -> Amount:
    """What counts as spent; nothing where no mark was raised."""
    column = db.execute("SELECT spent FROM mark WHERE purse = ? AND day = ?", (purse, day)).get
    return _NONE if column is None else read_amount(column)


def marks_of(db: apsw.Connection, day: int) -> dict[str, Amount]:
    """What counts as spent on a day, by purse."""
    rows = db.execute("SELECT purse, spent FROM mark WHERE day = ? ORDER BY purse", (day,))
    return {purse: read_amount(spent) for purse, spent in rows}
