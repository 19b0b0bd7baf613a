"""Receipts: found by attempt and end, summed for the wallet, forgotten when their time is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, TooLarge
from llmesh.journal import receipts
from llmesh.journal.columns import Side
from llmesh.journal.open import open_journal
from llmesh.journal.receipts import (
    ForgetOutputs,
    ForgetReceipts,
    ReceiptRow,
    Spending,
    StoreReceipt,
    find_receipt,
    find_receipts,
    oldest_output,
    oldest_receipt,
    receipts_of,
    spending,
)

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

DAY = 86_400


async def test_an_attempt_has_one_receipt_with_each_peer_and_end(path: Path, rows: Rows) -> None:
    given = rows.store(1).row
    others = [replace(given, side=Side.PAYER), replace(given, peer=rows.owner)]
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(*map(StoreReceipt, (given, *others)))
        for row in (given, *others):
            assert await journal.read(find_receipt, row.side, row.peer, rows.attempt(1)) == row
            with pytest.raises(Conflict, match="receipt already"):
                await journal.commit(StoreReceipt(row))
        assert await journal.read(find_receipt, Side.PAYER, rows.owner, rows.attempt(1)) is None
        assert await journal.read(receipts_of, rows.attempt(1).request) == [given, *others]
        wanted = [rows.attempt(n) for n in (1, 2)]
        assert await journal.read(
            find_receipts, Side.PAYER, rows.peer, wanted, given.signed.charge.channel
        ) == {wanted[0]: given.signed}


async def test_outputs_are_kept_for_a_time_and_up_to_a_size(
    path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "FORGOTTEN_AT_ONCE", 2)
    with pytest.raises(TooLarge):
        replace(rows.store(1).row, output=bytes(receipts.MAX_OUTPUT + 1))
    async with open_journal(path, rows.owner) as journal:
        kept = [replace(rows.store(n).row, output=bytes(receipts.MAX_OUTPUT)) for n in range(1, 6)]
        await journal.commit(*map(StoreReceipt, kept))
        assert await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(4)) == kept[3]
        for oldest in (1_001.0, 1_003.0, 1_004.0, 1_004.0):
            assert await journal.read(oldest_output) == oldest
            await journal.commit(ForgetOutputs(1_004.0))
        assert await journal.read(oldest_receipt) == 1_001.0
        for oldest in (1_001.0, 1_003.0, 1_004.0, 1_004.0):
            assert await journal.read(oldest_receipt) == oldest
            await journal.commit(ForgetReceipts(1_004.0))
        assert await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(4)) == kept[3]
        assert await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(3)) is None


async def test_fees_are_summed_by_day_and_model(path: Path, rows: Rows) -> None:
    big = 2**100
    async with open_journal(path, rows.owner) as journal:
        for number, (fee, day) in enumerate([(5, 0), (big, 1), (big, 1), (3, 2)]):
            signed = rows.signed(number, 0, fee, day * DAY)
            await journal.commit(StoreReceipt(ReceiptRow(Side.PAYER, rows.peer, signed)))
        await journal.commit(rows.store(9))
        assert await journal.read(spending, Side.PAYER, DAY) == [
            Spending(1, rows.model, Amount(2 * big), 2),
            Spending(2, rows.model, Amount(3), 1),
        ]
        assert await journal.read(spending, Side.PROVIDER, 0.0) == [Spending(0, rows.model, Amount(5), 1)]
