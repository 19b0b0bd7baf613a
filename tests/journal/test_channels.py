"""Channels as rows: what only grows never shrinks, whatever the order; a charge is whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit, ProviderBooks
from llmesh.core.payer import PayerBooks
from llmesh.core.voucher import ChannelId
from llmesh.errors import Conflict
from llmesh.journal.channels import (
    AddChannel,
    RecordDeposit,
    RecordPayerBooks,
    RecordProviderBooks,
    ReleaseReservation,
    RemoveChannel,
    Reservation,
    Reserve,
    all_channels,
    find_channel,
    reservations,
)
from llmesh.journal.columns import Side, pack_amount, read_amount
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.receipts import find_receipt
from llmesh.journal.schema import migrate

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

amounts = st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 300))
MOST = Amount(2**128 - 1)


@given(one=amounts, other=amounts)
def test_amounts_are_exact_and_sort_as_numbers(one: int, other: int) -> None:
    low, high = pack_amount(Amount(one)), pack_amount(Amount(other))
    assert read_amount(low) == Amount(one)
    assert (low < high) == (one < other)


async def the_channel(journal: Journal, rows: Rows, side: Side = Side.PROVIDER) -> object:
    return await journal.read(find_channel, side, rows.id)


async def test_both_ends_of_a_channel_are_kept_apart(path: Path, rows: Rows) -> None:
    payer = replace(
        rows.channel(Side.PAYER),
        charged=Amount(7),
        best=rows.voucher(9),
        last=rows.signed(1),
        good=3,
        broken="x",
    )
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()), AddChannel(payer))
        with pytest.raises(Conflict, match="already"):
            await journal.commit(AddChannel(rows.channel()))
        assert await the_channel(journal, rows) == rows.channel()
        assert await journal.read(all_channels, Side.PAYER) == [payer]
        assert payer.payer_books == PayerBooks(Amount(7), rows.voucher(9), rows.signed(1), 3)
        await journal.commit(RemoveChannel(Side.PROVIDER, rows.id))
        await journal.commit(RemoveChannel(Side.PROVIDER, rows.id))
        assert await the_channel(journal, rows) is None
        assert await the_channel(journal, rows, Side.PAYER) == payer


async def test_a_channel_that_is_not_there_takes_nothing(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel(Side.PAYER)))  # the other end is another row
        for change in (
            RecordDeposit(Side.PROVIDER, rows.id, Deposit()),
            RecordProviderBooks(rows.id, ProviderBooks()),
            RecordPayerBooks(ChannelId(b"o" * 32), PayerBooks()),
            rows.charge(1, 0),
        ):
            with pytest.raises(Conflict):
                await journal.commit(change)


async def test_the_largest_amounts_are_kept(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        await journal.commit(RecordDeposit(Side.PROVIDER, rows.id, Deposit(MOST, MOST, MOST)))
        await journal.commit(RecordDeposit(Side.PROVIDER, rows.id, Deposit(MOST, Amount(1), MOST)))
        await journal.commit(rows.charge(1, 0, MOST.micro))
        row = await journal.read(find_channel, Side.PROVIDER, rows.id)
        assert row is not None
        assert row.deposit == Deposit(MOST, MOST, MOST)
        assert row.charged == MOST
        assert row.provider_books == ProviderBooks(rows.voucher(MOST.micro), rows.signed(1, 0, MOST.micro))


async def test_a_charge_is_whole_or_not_there(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        await journal.commit(rows.charge(1, 0))
        after_one = await the_channel(journal, rows)
        for twice in (rows.charge(1, 5), rows.charge(1, 0)):
            with pytest.raises(Conflict, match="receipt already"):
                await journal.commit(twice)
        for gap in (rows.charge(2, 4), rows.charge(2, 10)):
            with pytest.raises(Conflict, match="was not charged"):
                await journal.commit(gap)
        assert await the_channel(journal, rows) == after_one
        assert await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(2)) is None
        await journal.commit(rows.charge(2, 5))


async def test_what_broke_stays_broken(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel(Side.PAYER)))
        await journal.commit(RecordPayerBooks(rows.id, PayerBooks(good=9)))
        await journal.commit(RecordPayerBooks(rows.id, PayerBooks(good=4), "overcharged"))
        await journal.commit(RecordPayerBooks(rows.id, PayerBooks(good=5), "again"))
        await journal.commit(RecordPayerBooks(rows.id, PayerBooks(good=6)))
        row = await journal.read(find_channel, Side.PAYER, rows.id)
        assert row is not None
        assert (row.good, row.broken) == (6, "overcharged")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ceilings=st.lists(amounts, min_size=1, max_size=8), sums=st.lists(amounts, min_size=1, max_size=8))
def test_books_only_grow_in_whatever_order_they_come(
    rows: Rows, ceilings: list[int], sums: list[int]
) -> None:
    db = apsw.Connection(":memory:")
    migrate(db, 0, rows.owner)
    AddChannel(rows.channel()).apply(db)
    AddChannel(rows.channel(Side.PAYER)).apply(db)
    for number, (ceiling, total) in enumerate(zip(ceilings, sums, strict=False), start=1):
        last = rows.signed(number, 0, total)
        RecordProviderBooks(rows.id, ProviderBooks(rows.voucher(ceiling), last)).apply(db)
        RecordPayerBooks(rows.id, PayerBooks(Amount(total), rows.voucher(ceiling), last)).apply(db)
    count = min(len(ceilings), len(sums))
    provider, payer = (find_channel(db, side, rows.id) for side in (Side.PROVIDER, Side.PAYER))
    assert provider is not None
    assert payer is not None
    best, most = max(ceilings[:count]), max(sums[:count])
    assert provider.best == payer.best == rows.voucher(best)
    assert provider.charged == payer.charged == Amount(most)
    assert provider.last is None or provider.last.charge.cumulative == Amount(most)
    db.close()


async def test_reservations_outlive_a_restart(path: Path, rows: Rows) -> None:
    held = [Reservation(rows.id, rows.attempt(n), Amount(n), 100.0 - n) for n in (1, 2, 3)]
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel(Side.PAYER)), *map(Reserve, held))
        await journal.commit(Reserve(replace(held[0], quote=Amount(99))))
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(reservations) == held[::-1]
        for _ in range(2):
            await journal.commit(ReleaseReservation(rows.id, rows.attempt(2)))
        assert await journal.read(reservations) == [held[2], held[0]]
        await journal.commit(RemoveChannel(Side.PAYER, rows.id))
        assert await journal.read(reservations) == []
