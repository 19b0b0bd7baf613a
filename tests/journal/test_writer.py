"""Group commit: durable on return, in order, whole or not at all; what a cancel and a fault do."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, TransactionFailed
from llmesh.journal import writer
from llmesh.journal.channels import AddChannel, find_channel
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.receipts import find_receipt
from llmesh.journal.schema import count_commits

if TYPE_CHECKING:
    from tests.journal.conftest import Disk, Rows


@dataclass(frozen=True)
class Bug:
    def apply(self, db: apsw.Connection) -> None:
        raise ZeroDivisionError


@dataclass(frozen=True)
class Statement:
    sql: str

    def apply(self, db: apsw.Connection) -> None:
        db.execute(self.sql)


async def stored(journal: Journal, rows: Rows, numbers: range) -> list[int]:
    return [n for n in numbers if await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(n))]


def stored_in_file(path: Path, copy: Path) -> list[int]:
    """The numbers of the receipts that a process would find that opened the files as they are now."""
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    db = apsw.Connection(str(copy), vfs=next(name for name in apsw.vfs_names() if name != "faulty"))
    found = [int(name, 16) for (name,) in db.execute("SELECT request FROM receipt ORDER BY number")]
    db.close()
    return found


async def test_a_commit_is_there_after_its_return(path: Path, tmp_path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        for number in range(3):
            await journal.commit(rows.store(number))
            assert stored_in_file(path, tmp_path / "copy.db") == list(range(number + 1))
        assert (
            await journal.read(find_receipt, Side.PROVIDER, rows.peer, rows.attempt(1)) == rows.store(1).row
        )
    async with open_journal(path, rows.owner) as journal:
        assert await stored(journal, rows, range(5)) == [0, 1, 2]


async def test_a_thousand_callers_share_few_transactions(path: Path, rows: Rows, disk: Disk) -> None:
    async with open_journal(path, rows.owner) as journal:
        before, syncs = await journal.read(count_commits), disk.syncs
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(journal.commit, rows.store(number))
        assert await journal.read(count_commits) - before <= 4
        assert disk.syncs - syncs <= 8  # a checkpoint may have come between
        assert await stored(journal, rows, range(1000)) == list(range(1000))


async def test_commits_take_effect_in_the_order_of_the_calls(path: Path, rows: Rows) -> None:
    charged = 0

    async def charge(number: int) -> None:
        nonlocal charged
        before, charged = charged, charged + number
        await journal.commit(rows.charge(number, before, number))

    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        async with trio.open_nursery() as nursery:
            for number in range(1, 300):
                nursery.start_soon(charge, number)
        row = await journal.read(find_channel, Side.PROVIDER, rows.id)
        assert row is not None
        assert row.charged == Amount(charged)
        assert row.best == rows.voucher(charged)


async def test_a_refused_commit_changes_nothing_and_spares_the_others(path: Path, rows: Rows) -> None:
    refused: list[Exception] = []

    async def commit(*changes: writer.Change) -> None:
        try:
            await journal.commit(*changes)
        except (Conflict, ZeroDivisionError, apsw.Error) as error:
            refused.append(error)

    async with open_journal(path, rows.owner) as journal:
        await journal.commit(rows.store(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, rows.store(1))
            nursery.start_soon(commit, rows.store(2), rows.store(0))
            nursery.start_soon(commit, rows.store(3), Bug())
            nursery.start_soon(commit, rows.store(4), Statement("SELECT nonsense"))
            nursery.start_soon(commit, rows.store(5), Statement("UPDATE receipt SET side = 'x'"))
            nursery.start_soon(commit, rows.store(6))
        assert {type(error) for error in refused} == {
            Conflict,
            ZeroDivisionError,
            apsw.SQLError,
            apsw.ConstraintError,
        }
        assert await stored(journal, rows, range(8)) == [0, 1, 6]


FAULTS = {
    "disk is full": apsw.FullError,
    "read-only": apsw.ReadOnlyError,
    "reported an error": apsw.IOError,
}


@pytest.mark.parametrize("said", FAULTS)
async def test_a_disk_that_takes_nothing_is_3002_until_it_does_again(
    path: Path, tmp_path: Path, rows: Rows, disk: Disk, said: str
) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        disk.write = FAULTS[said]()
        for number in range(3):
            with pytest.raises(TransactionFailed, match=said):
                await journal.commit(rows.charge(number, 0))
        assert await stored(journal, rows, range(3)) == []
        assert stored_in_file(path, tmp_path / "copy.db") == []
        disk.write = None
        await journal.commit(rows.charge(7, 0))
        assert await stored(journal, rows, range(8)) == [7]


@pytest.mark.parametrize("failing", [1, 2, 1000], ids=["once", "twice", "for good"])
async def test_what_a_failed_fsync_left_behind_never_comes_back(
    path: Path, tmp_path: Path, rows: Rows, disk: Disk, failing: int
) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        disk.sync, disk.syncs_left = apsw.IOError("fsync"), failing
        with pytest.raises(TransactionFailed, match="reported an error"):
            await journal.commit(rows.charge(1, 0))
        # as if the process were killed right now
        assert stored_in_file(path, tmp_path / "copy.db") == []
        disk.sync = None
        await journal.commit(rows.charge(2, 0))
        assert stored_in_file(path, tmp_path / "copy.db") == [2]
        row = await journal.read(find_channel, Side.PROVIDER, rows.id)
        assert row is not None
        assert row.charged == Amount(5)


async def test_all_of_a_group_fail_with_their_transaction(path: Path, rows: Rows, disk: Disk) -> None:
    failed = 0

    async def commit(number: int) -> None:
        nonlocal failed
        try:
            await journal.commit(rows.store(number))
        except TransactionFailed:
            failed += 1

    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        disk.sync, disk.syncs_left = apsw.IOError("fsync"), 1000
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(commit, number)
        disk.sync = None
        assert failed == 50
        assert await stored(journal, rows, range(50)) == []


@dataclass(frozen=True)
class Spill:
    """A transaction that outgrows the cache is written, and may fail, before its commit."""

    def apply(self, db: apsw.Connection) -> None:
        raise apsw.FullError


async def test_a_disk_that_fails_in_the_middle_fails_the_group(path: Path, rows: Rows) -> None:
    failed = 0

    async def commit(*changes: writer.Change) -> None:
        nonlocal failed
        with pytest.raises(TransactionFailed, match="disk is full"):
            await journal.commit(*changes)
        failed += 1

    async with open_journal(path, rows.owner) as journal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit, rows.store(1))
            nursery.start_soon(commit, rows.store(2), Spill())
            nursery.start_soon(commit, rows.store(3))
        assert failed == 3
        assert await stored(journal, rows, range(4)) == []


async def test_a_charge_after_a_lost_one_is_refused(path: Path, rows: Rows, disk: Disk) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        disk.write = apsw.FullError()
        with pytest.raises(TransactionFailed):
            await journal.commit(rows.charge(1, 0))
        disk.write = None
        with pytest.raises(Conflict, match="was not charged"):
            await journal.commit(rows.charge(2, 5))
        assert await stored(journal, rows, range(3)) == []


async def test_a_cancel_at_any_moment_leaves_no_doubt(path: Path, rows: Rows) -> None:
    async def attempt(number: int, ticks: int) -> bool:
        async def cancel() -> None:
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await journal.commit(rows.store(number))
                return True
        return False

    outcomes = {}
    async with open_journal(path, rows.owner) as journal:
        for number in range(120):
            outcomes[number] = await attempt(number, number % 40)
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.commit(rows.store(500))
        assert scope.cancelled_caught
        there = await stored(journal, rows, range(501))
    assert there == [number for number, done in outcomes.items() if done]
    assert len(there) == 120  # once queued, nothing is taken back


@pytest.fixture
def short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CAPACITY", 2)


@pytest.mark.usefixtures("short_queue")
async def test_a_cancel_takes_out_only_who_stands_in_line(path: Path, rows: Rows, disk: Disk) -> None:
    ended: dict[int, str] = {}

    async def commit(number: int) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await journal.commit(rows.store(number))
            ended[number] = "durable"
        if scope.cancelled_caught:
            ended[number] = "cancelled"

    scopes: list[trio.CancelScope] = []
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        disk.held = threading.Event()
        async with trio.open_nursery() as nursery:
            for number in range(6):  # one under way, two queued, three in line
                nursery.start_soon(commit, number)
                await wait_all_tasks_blocked()
            for number in (0, 1, 4):
                scopes[number].cancel()
            await wait_all_tasks_blocked()
            assert ended == {4: "cancelled"}
            disk.held.set()
        assert ended == {0: "durable", 1: "durable", 2: "durable", 3: "durable", 4: "cancelled", 5: "durable"}
        assert await stored(journal, rows, range(6)) == [0, 1, 2, 3, 5]


@pytest.mark.usefixtures("short_queue")
async def test_order_holds_through_the_line(path: Path, rows: Rows) -> None:
    async def advance(before: int) -> None:
        await journal.commit(rows.charge(before + 1, before, 1))

    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        async with trio.open_nursery() as nursery:
            for before in range(40):
                nursery.start_soon(advance, before)
                await trio.lowlevel.checkpoint()


async def test_the_log_is_emptied_once_callers_are_told(
    path: Path, rows: Rows, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_log, go_on, emptied = writer._empty_log, threading.Event(), 0

    def held(db: apsw.Connection) -> None:
        nonlocal emptied
        assert go_on.wait(10)
        disk.write = None if emptied else apsw.FullError()  # then the next group tries again
        empty_log(db)
        disk.write = None
        emptied += 1

    monkeypatch.setattr(writer, "_empty_log", held)
    monkeypatch.setattr(writer, "LOG", 12)
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(*(rows.store(number) for number in range(60)))
        assert not emptied
        go_on.set()
        for number in range(60, 120):
            await journal.commit(rows.store(number))
        log = path.with_name(f"{path.name}-wal").stat().st_size
        assert emptied >= 2
        assert log < 60 * 4_120  # it begins anew each time
        assert await stored(journal, rows, range(121)) == list(range(120))


async def test_leaving_writes_what_is_queued_and_takes_no_more(path: Path, rows: Rows, disk: Disk) -> None:
    async with trio.open_nursery() as outside:
        async with open_journal(path, rows.owner) as journal:
            await journal.commit(AddChannel(rows.channel()))
            disk.held = threading.Event()
            for number in range(3):
                outside.start_soon(journal.commit, rows.store(number))
                await wait_all_tasks_blocked()
            disk.held.set()
        with pytest.raises(TransactionFailed, match="closed"):
            await journal.commit(rows.store(9))
    async with open_journal(path, rows.owner) as journal:
        assert await stored(journal, rows, range(10)) == [0, 1, 2]


async def test_a_cancel_of_the_whole_keeps_what_was_promised(path: Path, rows: Rows, disk: Disk) -> None:
    with trio.CancelScope() as scope:
        async with open_journal(path, rows.owner) as journal, trio.open_nursery() as nursery:
            await journal.commit(AddChannel(rows.channel()))
            disk.held = threading.Event()
            for number in range(3):
                nursery.start_soon(journal.commit, rows.store(number))
                await wait_all_tasks_blocked()
            scope.cancel()
            disk.held.set()
    async with open_journal(path, rows.owner) as journal:
        assert await stored(journal, rows, range(3)) == [0, 1, 2]


async def test_if_the_writer_breaks_nobody_waits_for_ever(
    path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def commit(number: int) -> None:
        with pytest.raises(TransactionFailed, match="ended"):
            await journal.commit(rows.store(number))
        told.append(number)

    told: list[int] = []
    monkeypatch.setattr(writer, "_write", broken)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as outside, open_journal(path, rows.owner) as journal:
            for number in range(3):
                outside.start_soon(commit, number)
            await trio.sleep_forever()
    assert sorted(told) == [0, 1, 2]
