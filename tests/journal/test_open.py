"""Opening: whose file it is, which version, who else holds it; reading beside the writer."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
import trio

from llmesh.core.ids import PeerId
from llmesh.errors import Conflict, MeshError, TransactionFailed, ValidationFailed
from llmesh.journal import open as opened
from llmesh.journal import readers, schema
from llmesh.journal.channels import AddChannel, all_channels
from llmesh.journal.columns import Side
from llmesh.journal.open import open_journal
from llmesh.journal.schema import VERSION, count_commits

if TYPE_CHECKING:
    from tests.journal.conftest import Disk, Rows


def change(path: Path, sql: str) -> None:
    db = apsw.Connection(str(path))
    db.execute(sql)
    db.close()


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


async def refused(path: Path, owner: PeerId) -> MeshError:
    """Why it is not opened; it must be left as it was."""
    before = files(path)
    with pytest.raises(MeshError) as refusal:
        async with open_journal(path, owner):
            pass
    assert files(path) == before
    assert str(path) in refusal.value.message
    return refusal.value


async def test_a_new_journal_is_for_its_owner_alone_and_durable_by_its_settings(
    path: Path, rows: Rows, disk: Disk
) -> None:
    async with open_journal(path, rows.owner) as journal:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.with_name("journal.db-wal").stat().st_mode) == 0o600
        assert await journal.read(lambda db: db.execute("PRAGMA journal_mode").get) == "wal"
        syncs = disk.syncs
        for _ in range(5):
            await journal.commit()
        assert disk.syncs - syncs == 5  # synchronous = FULL
    assert [file.name for file in path.parent.iterdir()] == ["journal.db"]


async def test_another_nodes_journal_is_refused(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner):
        pass
    refusal = await refused(path, rows.peer)
    assert isinstance(refusal, Conflict)
    assert rows.owner in refusal.message


async def test_a_newer_programs_journal_is_refused(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner):
        pass
    change(path, f"PRAGMA user_version = {VERSION + 1}")
    refusal = await refused(path, rows.owner)
    assert isinstance(refusal, Conflict)
    assert f"newer LLMESH (schema {VERSION + 1}" in refusal.message
    assert refusal.next_step == "Install that version or a later one."


async def test_what_is_no_journal_is_refused(path: Path, rows: Rows, tmp_path: Path) -> None:
    change(path, "CREATE TABLE other (x)")
    assert "not the journal" in (await refused(path, rows.owner)).message
    path.write_bytes(b"no database at all" * 1000)
    assert "damaged or no database" in (await refused(path, rows.owner)).message
    for nowhere in (tmp_path / "missing" / "journal.db", tmp_path):
        with pytest.raises(ValidationFailed, match="cannot be opened"):
            async with open_journal(nowhere, rows.owner):
                pass


async def test_a_disk_that_takes_nothing_refuses_a_new_journal(path: Path, rows: Rows, disk: Disk) -> None:
    disk.write = apsw.FullError()
    with pytest.raises(ValidationFailed, match="the disk is full"):
        async with open_journal(path, rows.owner):
            pass
    disk.write = None
    async with open_journal(path, rows.owner) as journal:  # the empty file it left is no hindrance
        assert await journal.read(count_commits) == 0


async def test_a_file_that_can_only_be_read_is_refused(path: Path, rows: Rows, disk: Disk) -> None:
    async with open_journal(path, rows.owner):
        pass
    disk.read_only = True
    assert "is read-only" in (await refused(path, rows.owner)).message


async def test_an_older_journal_is_brought_up_step_by_step(
    path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
    steps = (*schema._STEPS, "CREATE TABLE later (x)", "INSERT INTO later VALUES (1); SELECT nonsense")
    monkeypatch.setattr(schema, "_STEPS", steps)
    monkeypatch.setattr(schema, "VERSION", VERSION + 2)
    with pytest.raises(apsw.SQLError):
        async with open_journal(path, rows.owner):
            pass
    monkeypatch.setattr(schema, "_STEPS", steps[:-1])
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(all_channels, Side.PROVIDER) == [rows.channel()]
        assert await journal.read(lambda db: db.execute("SELECT count(*) FROM later").get) == 0
        assert await journal.read(lambda db: db.execute("PRAGMA user_version").get) == VERSION + 1


async def test_a_program_that_holds_the_file_makes_commits_fail_not_wait_for_ever(
    path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "PATIENCE_MS", 20)
    async with open_journal(path, rows.owner) as journal:
        program = (
            "import apsw, sys; db = apsw.Connection(sys.argv[1]); db.execute('BEGIN IMMEDIATE');"
            "print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(TransactionFailed, match="another program holds it"):
                await journal.commit(AddChannel(rows.channel()))
            assert await journal.read(all_channels, Side.PROVIDER) == []  # reading goes on
            other.kill()
        await journal.commit(AddChannel(rows.channel()))


async def test_two_processes_on_one_file_lose_nothing(path: Path, rows: Rows) -> None:
    """The data directory's lock keeps this from happening; if it does, the file's own locks hold."""
    program = (
        "import sys, trio; from pathlib import Path; from llmesh.journal.budgets import RaiseMark\n"
        "from llmesh.core.amount import Amount; from llmesh.journal.open import open_journal\n"
        "async def main(path, owner, me):\n"
        "    async with open_journal(Path(path), owner) as journal:\n"
        "        for day in range(100): await journal.commit(RaiseMark(me, day, Amount(day)))\n"
        "trio.run(main, *sys.argv[1:])"
    )
    async with open_journal(path, rows.owner):
        pass
    both = [subprocess.Popen([sys.executable, "-c", program, str(path), rows.owner, me]) for me in ("a", "b")]
    assert [await trio.to_thread.run_sync(process.wait) for process in both] == [0, 0]
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(lambda db: db.execute("SELECT count(*) FROM mark").get) == 200


async def test_reads_see_only_what_is_durable_and_cannot_write(path: Path, rows: Rows, disk: Disk) -> None:
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(all_channels, Side.PROVIDER) == []
        await journal.commit(AddChannel(rows.channel()))
        assert await journal.read(all_channels, Side.PROVIDER) == [rows.channel()]
        with pytest.raises(TransactionFailed, match="read-only"):
            await journal.read(lambda db: db.execute("DELETE FROM channel"))
        assert await journal.read(all_channels, Side.PROVIDER) == [rows.channel()]


async def test_a_read_is_one_snapshot(path: Path, rows: Rows) -> None:
    def twice(db: apsw.Connection) -> tuple[int, int]:
        first = count_commits(db)
        trio.from_thread.run(journal.commit)
        return first, count_commits(db)

    async with open_journal(path, rows.owner) as journal:
        first, second = await journal.read(twice)
        assert first == second
        assert await journal.read(count_commits) == first + 1


async def test_more_reads_than_readers_take_turns(path: Path, rows: Rows) -> None:
    running = most = 0

    def slow(_: apsw.Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1

    async with open_journal(path, rows.owner) as journal, trio.open_nursery() as nursery:
        for _ in range(3 * readers.READERS):
            nursery.start_soon(journal.read, slow)
    assert most == readers.READERS


async def test_a_cancel_stops_a_long_query(path: Path, rows: Rows) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    async with open_journal(path, rows.owner) as journal:
        with trio.move_on_after(0.05) as scope:
            await journal.read(lambda db: db.execute(endless).get)
        assert scope.cancelled_caught
        for _ in range(2 * readers.READERS):  # the connection is as good as before
            assert await journal.read(count_commits) == 0
