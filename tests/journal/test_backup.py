"""Backups: taken under load, whole or not there; put back over nothing that knows more."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
import trio

from llmesh.errors import Conflict, TransactionFailed, ValidationFailed
from llmesh.journal import backup as backups
from llmesh.journal import schema
from llmesh.journal.backup import restore
from llmesh.journal.channels import AddChannel, find_channel
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.outbox import AddIntent, Intent, find_intent
from llmesh.journal.schema import VERSION, channel_salt

if TYPE_CHECKING:
    from tests.journal.conftest import Disk, Rows


async def charges(journal: Journal, rows: Rows) -> int:
    row = await journal.read(find_channel, Side.PROVIDER, rows.id)
    return row.charged.micro // 5 if row else -1


async def fill(path: Path, rows: Rows, count: int) -> None:
    async with open_journal(path, rows.owner) as journal:
        done = await charges(journal, rows)
        if done < 0:
            await journal.commit(AddChannel(rows.channel()))
        for number in range(max(done, 0), count):
            await journal.commit(rows.charge(number + 1, 5 * number))


async def charges_of(path: Path, rows: Rows) -> int:
    async with open_journal(path, rows.owner) as journal:
        return await charges(journal, rows)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere.backup"


async def test_a_backup_under_load_is_one_moment(
    path: Path, copy: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PAGES", 1)
    await fill(path, rows, 20)
    async with open_journal(path, rows.owner) as journal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.backup, copy)
            for number in range(20, 60):
                await journal.commit(rows.charge(number + 1, 5 * number))
        assert await charges(journal, rows) == 60
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.read_bytes()[18:20] == b"\1\1"  # no log of its own, so it opens where nothing can be written
    restored = path.with_name("restored.db")
    assert restore(copy, restored, rows.owner) is None
    assert 20 <= await charges_of(restored, rows) <= 60
    await fill(restored, rows, 70)  # a restored journal is one like any other


async def test_a_cancelled_backup_leaves_nothing(
    path: Path, copy: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PAGES", 1)
    await fill(path, rows, 10)
    copy.write_bytes(b"an older one")
    async with open_journal(path, rows.owner) as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.backup(copy)
        monkeypatch.setattr(backups, "count_commits", lambda _: trio.from_thread.run_sync(scopes[0].cancel))
        scopes = [trio.CancelScope()]
        with scopes[0]:
            await journal.backup(copy)
        assert scopes[0].cancelled_caught
    assert copy.read_bytes() == b"an older one"
    assert sorted(file.name for file in path.parent.iterdir()) == [copy.name, path.name]


async def test_a_backup_that_cannot_be_written_is_said_so(
    path: Path, copy: Path, rows: Rows, disk: Disk
) -> None:
    async with open_journal(path, rows.owner) as journal:
        with pytest.raises(TransactionFailed, match=r"nowhere/b could not be written"):
            await journal.backup(path.with_name("nowhere") / "b")
        copy.mkdir()
        with pytest.raises(TransactionFailed, match="could not be written"):
            await journal.backup(copy)
        await journal.commit(AddChannel(rows.channel()))


async def test_a_lost_or_damaged_journal_is_replaced_and_kept(path: Path, copy: Path, rows: Rows) -> None:
    await fill(path, rows, 5)
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
    path.unlink()
    assert restore(copy, path, rows.owner) is None
    assert await charges_of(path, rows) == 5
    for turn in (1, 2):
        path.write_bytes(b"damaged" * 1000)
        path.with_name("journal.db-wal").write_bytes(b"a log that must not meet the backup")
        kept = restore(copy, path, rows.owner)
        assert kept == path.with_name(f"journal.db.replaced-{turn}")
        assert kept.read_bytes() == b"damaged" * 1000
        assert kept.with_name(f"{kept.name}-wal").exists()
        assert await charges_of(path, rows) == 5


async def test_a_journal_that_knows_more_is_not_replaced(path: Path, copy: Path, rows: Rows) -> None:
    await fill(path, rows, 5)
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
    restore(copy, path, rows.owner)  # it knows no more than the backup
    await fill(path, rows, 8)
    with pytest.raises(Conflict, match="3 commits that the backup does not know") as caught:
        restore(copy, path, rows.owner)
    assert "cannot be opened" not in caught.value.message, "nothing is wrong with the file"
    assert "move it away" in caught.value.next_step
    assert await charges_of(path, rows) == 8


async def test_a_journal_of_a_crashed_process_is_kept_with_its_log(
    path: Path, copy: Path, rows: Rows, tmp_path: Path
) -> None:
    crashed = tmp_path / "crashed.db"
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        await journal.commit(rows.charge(1, 0))
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
        await journal.commit(rows.charge(2, 5))
        await journal.backup(copy)
    kept = restore(copy, crashed, rows.owner)
    assert kept is not None
    assert await charges_of(kept, rows) == 1
    assert await charges_of(crashed, rows) == 2


async def test_another_nodes_journal_is_not_replaced(
    path: Path, copy: Path, rows: Rows, tmp_path: Path
) -> None:
    await fill(path, rows, 5)
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
    foreign = tmp_path / "foreign.db"
    async with open_journal(foreign, rows.peer):
        pass
    before = foreign.read_bytes()
    with pytest.raises(Conflict, match="journal of node"):
        restore(copy, foreign, rows.owner)
    assert foreign.read_bytes() == before
    assert not foreign.with_name("foreign.db.restored").exists()


async def test_foreign_newer_and_damaged_backups_are_refused(path: Path, copy: Path, rows: Rows) -> None:
    await fill(path, rows, 5)
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
    with pytest.raises(Conflict, match="journal of node"):
        restore(copy, path, rows.peer)
    good = copy.read_bytes()
    pages = len(good) // 4096
    for page in (1, pages // 2, pages - 1):
        copy.write_bytes(good[: 4096 * page] + b"x" * 4096 + good[4096 * (page + 1) :])
        with pytest.raises(ValidationFailed, match="damaged"):
            restore(copy, path, rows.owner)
    copy.write_bytes(b"")
    with pytest.raises(ValidationFailed, match="empty"):
        restore(copy, path, rows.owner)
    with pytest.raises(ValidationFailed, match="cannot be opened"):
        restore(path.with_name("nothing"), path, rows.owner)
    for newer in (copy, path):
        copy.write_bytes(good)
        db = apsw.Connection(str(newer))
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.close()
        with pytest.raises(Conflict, match="newer LLMESH"):
            restore(copy, path, rows.owner)


async def test_a_restored_node_takes_channels_of_a_salt_that_was_never_used(
    path: Path, copy: Path, rows: Rows
) -> None:
    await fill(path, rows, 3)
    salts = []
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
        salts.append(await journal.read(channel_salt))
    for _ in range(2):
        path.unlink()
        restore(copy, path, rows.owner)
        async with open_journal(path, rows.owner) as journal:
            salts.append(await journal.read(channel_salt))
            assert await charges(journal, rows) == 3
    path.unlink()
    async with open_journal(path, rows.owner) as journal:  # a new one
        salts.append(await journal.read(channel_salt))
    assert len({*salts, bytes(32)}) == 5


async def test_what_may_have_been_done_since_a_backup_is_not_done_a_second_time(
    path: Path, copy: Path, rows: Rows
) -> None:
    """One that has its nonce is the same operation, whoever sends it; one that waits behind it is not."""
    first = Intent("a", "ledger", "me", 0, b"first", 1.0, 1.0, reference=b"nonce")
    second = Intent("b", "ledger", "me", 1, b"second", 1.0, 1.0)
    hook = Intent("c", "webhook", "url", None, b"told", 1.0, 1.0)
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddIntent(first), AddIntent(second), AddIntent(hook))
        await journal.backup(copy)
    path.unlink()
    restore(copy, path, rows.owner)
    async with open_journal(path, rows.owner) as journal:
        states = [await journal.read(find_intent, name) for name in "abc"]
        assert [intent and intent.state for intent in states] == ["waiting", "dead", "waiting"]


async def test_a_backup_of_an_earlier_version_is_restored_too(
    path: Path, copy: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "_STEPS", schema._STEPS[:3])
        earlier.setattr(schema, "VERSION", 3)
        async with open_journal(path, rows.owner) as journal:
            await journal.commit(AddChannel(rows.channel()))
            await journal.backup(copy)
    path.unlink()
    restore(copy, path, rows.owner)
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(channel_salt) != bytes(32)
        assert await charges(journal, rows) == 0


async def test_an_interrupted_restore_leaves_no_log_for_the_copy_of_the_next(
    path: Path, copy: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(db: apsw.Connection, *_: object) -> None:
        db.execute("BEGIN; UPDATE journal SET failures = 7")
        left.extend(file.name for file in path.parent.glob("*restored*"))
        raise KeyboardInterrupt

    left: list[str] = []
    await fill(path, rows, 3)
    async with open_journal(path, rows.owner) as journal:
        await journal.backup(copy)
    monkeypatch.setattr(backups, "begin_anew", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(copy, path, rows.owner)
    assert left == [f"{path.name}.restored"]
