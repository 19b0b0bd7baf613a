"""The ledger's file: what is entered stays, what is damaged is found, what is another's is refused."""

from __future__ import annotations

import random
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import MockClock

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.genesis import sign_genesis
from llmesh.core.operations import Operation, sign_operation
from llmesh.core.voucher import channel_id
from llmesh.errors import Conflict, MeshError, TransactionFailed, ValidationFailed
from llmesh.ledger.local import TICK, kept_genesis, open_local_ledger, verify_ledger
from llmesh.ledger.log import LogLedger
from tests.core.banking import ALICE, BOB, CAROL, CHAIN, GENESIS, ISSUER, SIGN, claim_of, config

CHANNEL = config(ALICE, BOB)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def do(ledger: LogLedger, actor: ops.Address, *operations: Operation) -> None:
    for operation in operations:
        nonce = (await ledger.account(actor)).nonce + 1
        await ledger.submit(sign_operation(actor, nonce, operation, CHAIN, SIGN[actor]))


async def lived(path: Path) -> None:
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger:
        await do(ledger, ISSUER, ops.Mint(CAROL, Amount(5)))
        await do(ledger, ALICE, ops.Deposit(CHANNEL, Amount(400)), ops.Bond(Amount(100)))
        await do(ledger, BOB, ops.Claim((claim_of(CHANNEL, 200, 150),)), ops.Settle(BOB))


async def test_what_is_entered_outlives_the_process(path: Path) -> None:
    await lived(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger:
        assert ledger.height == 5
        assert (await ledger.account(BOB)).balance == Amount(150)
        channel = await ledger.channel(channel_id(CHANNEL, CHAIN))
        assert channel is not None
        assert (channel.config, channel.deposit.claimed) == (CHANNEL, Amount(150))
        await do(ledger, BOB, ops.Transfer(CAROL, Amount(1)))
    found = verify_ledger(path)
    assert (found.head.sequence, found.accounts, found.channels) == (6, 4, 1)
    assert found.genesis == kept_genesis(path) == GENESIS


async def test_a_member_keeps_a_copy_and_enters_nothing(path: Path, tmp_path: Path) -> None:
    await lived(path)
    async with (
        open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger,
        open_local_ledger(tmp_path / "copy.db", GENESIS) as copy,
    ):
        entries = await ledger.entries(0, 99)
        assert [entry.entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
        assert [entry.entry.sequence for entry in await ledger.entries(3, 1)] == [4]
        with pytest.raises(ValidationFailed, match="does not follow"):
            await copy.take(entries[1])
        for entry in entries:
            await copy.take(entry)
        with pytest.raises(TransactionFailed, match="Only the issuer"):
            await do(copy, ALICE, ops.Bond(Amount(1)))
        await copy.submit(entries[0].entry.operation)  # it is entered already
        assert copy.head == ledger.head
        assert copy.has_members
    assert verify_ledger(tmp_path / "copy.db").head == entries[-1].head


async def test_the_files_of_others_are_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    await lived(path)
    other = sign_genesis(replace(GENESIS.genesis, created_at=1), SIGN[ISSUER])
    before = path.read_bytes()
    with pytest.raises(Conflict, match="another swarm"):
        async with open_local_ledger(path, other):
            pass
    assert path.read_bytes() == before
    database = apsw.Connection(str(path))
    database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(Conflict, match="newer LLMESH"):
        kept_genesis(path)
    stranger = tmp_path / "stranger.db"
    for content in (b"", b"no database" * 500):
        stranger.write_bytes(content)
        for attempt in (kept_genesis, verify_ledger):
            with pytest.raises(ValidationFailed, match="stranger"):
                attempt(stranger)
    assert kept_genesis(tmp_path / "none.db") is None


async def test_a_full_disk_enters_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger:
        await do(ledger, ALICE, ops.Bond(Amount(1)))
        before = await ledger.account(ALICE)
        ledger._store._db.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]
        big = ops.Claim(tuple(claim_of(config(ALICE, BOB, salt), 1, 1) for salt in range(100)))
        deposits = [ops.Deposit(config(ALICE, BOB, salt), Amount(1)) for salt in range(100)]
        with pytest.raises(TransactionFailed, match="full"):
            await do(ledger, ALICE, *deposits)
        height = ledger.height
        assert (await ledger.account(ALICE)).nonce == height
        ledger._store._db.execute("PRAGMA max_page_count = 1000000")  # type: ignore[attr-defined]
        await do(ledger, ALICE, ops.Bond(Amount(1)))
        assert (await ledger.account(ALICE)).stake > before.stake
        assert ledger.height == height + 1
        with pytest.raises(MeshError):
            await do(ledger, BOB, big)
    assert verify_ledger(path).head.sequence == height + 1


async def test_the_issuers_time_stands_while_it_is_away(path: Path) -> None:
    now = [0.0]
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER], lambda: now[0]) as ledger:
        await do(ledger, ALICE, ops.Bond(Amount(10)), ops.StartUnbond(Amount(10)))
        now[0] += 3_000
    now[0] += 1_000_000
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER], lambda: now[0]) as ledger:
        with pytest.raises(Conflict) as caught:
            await do(ledger, ALICE, ops.Withdraw())
        assert caught.value.retry_after == 600
        now[0] += 600
        await do(ledger, ALICE, ops.Withdraw())
    verify_ledger(path)


async def test_the_time_is_kept_before_the_end(path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # so that it does not jump while a thread writes
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger:
        assert ledger.issuer is not None
        started = ledger.issuer.now()
        await trio.sleep(3 * TICK)
        [[(_, at, _)]] = [content(path)[2]]
        assert at >= started + 2 * TICK


def content(path: Path) -> list[list[apsw.SQLiteValues]]:
    """All that the file says."""
    database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        tables = ("genesis", "entry", "clock", "minted", "account", "channel", "mark")
        return [list(database.execute(f"SELECT * FROM {table}")) for table in tables]
    finally:
        database.close()


async def test_every_flipped_byte_is_found(path: Path, tmp_path: Path) -> None:
    """Or it lies where the file says nothing; then all that it says is as it was."""
    await lived(path)
    whole, said, changed = path.read_bytes(), content(path), tmp_path / "changed.db"
    rng, found = random.Random(4), 0
    used = [n for n, byte in enumerate(whole) if byte]
    for position in rng.sample(used, 1_200):
        flipped = bytearray(whole)
        flipped[position] ^= rng.randrange(1, 256)
        changed.write_bytes(flipped)
        try:
            verify_ledger(changed)
        except (ValidationFailed, Conflict):
            found += 1
        else:
            assert content(changed) == said, position
        for suffix in ("-wal", "-shm"):
            Path(f"{changed}{suffix}").unlink(missing_ok=True)
    assert found > 1_000


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE account SET figures = replace(figures, '1', '2')",
        "DELETE FROM account WHERE owner = (SELECT min(owner) FROM account)",
        "UPDATE channel SET figures = '1 1 1 1'",
        "DELETE FROM entry WHERE sequence = 5",
        "DELETE FROM entry WHERE sequence = 1",
        "UPDATE entry SET nonce = 9 WHERE sequence = 2",
        "INSERT INTO mark VALUES (x'00')",
        "UPDATE minted SET micro = '1'",
        "UPDATE clock SET at = at + 1000000",
        "DELETE FROM genesis",
    ],
)
async def test_what_somebody_writes_into_it_is_found(path: Path, statement: str, tmp_path: Path) -> None:
    await lived(path)
    verify_ledger(path)
    shutil.copy(path, tmp_path / "kept.db")
    database = apsw.Connection(str(path))
    database.execute(statement)
    database.close()
    with pytest.raises(ValidationFailed):
        verify_ledger(path)
    verify_ledger(tmp_path / "kept.db")
