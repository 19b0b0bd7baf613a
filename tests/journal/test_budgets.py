"""Marks of what purses may have spent: raised before, settled after, per day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmesh.core.amount import Amount
from llmesh.journal.budgets import ForgetMarks, RaiseMark, SettleMark, find_mark, marks_of
from llmesh.journal.open import open_journal

if TYPE_CHECKING:
    from tests.journal.conftest import Rows


async def test_a_mark_rises_and_only_a_clean_stop_lowers_it(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(find_mark, "alice", 3) == Amount(0)
        for raised in (64, 192, 128):
            await journal.commit(RaiseMark("alice", 3, Amount(raised)))
        await journal.commit(RaiseMark("alice", 4, Amount(1)), RaiseMark("bob", 3, Amount(2**128 - 1)))
    async with open_journal(path, rows.owner) as journal:  # as after a crash
        assert await journal.read(find_mark, "alice", 3) == Amount(192)
        await journal.commit(SettleMark("alice", 3, Amount(150)), SettleMark("carol", 3, Amount(1)))
        assert await journal.read(marks_of, 3) == {
            "alice": Amount(150),
            "bob": Amount(2**128 - 1),
            "carol": Amount(1),
        }
        await journal.commit(ForgetMarks(4))
        assert await journal.read(marks_of, 3) == {}
        assert await journal.read(marks_of, 4) == {"alice": Amount(1)}
