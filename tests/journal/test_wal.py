"""A power cut in the log: wherever the file ends or is spoilt, it opens as an earlier moment of itself."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.journal.backup import check_integrity
from llmesh.journal.channels import AddChannel, find_channel
from llmesh.journal.columns import Side
from llmesh.journal.open import open_journal

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

HEADER, FRAME_HEADER = 32, 24
COMMITS = 12


async def written(path: Path, rows: Rows) -> tuple[bytes, bytes]:
    """Database and log after so many charges of 5, before any checkpoint."""
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddChannel(rows.channel()))
        for number in range(COMMITS):
            await journal.commit(rows.charge(number + 1, 5 * number))
        return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


def history(folder: Path, rows: Rows, database: bytes, log: bytes) -> int:
    """How many charges the files open with; each is there whole, and the ones before it."""
    path = folder / "cut.db"
    path.write_bytes(database)
    path.with_name("cut.db-wal").write_bytes(log)
    path.with_name("cut.db-shm").unlink(missing_ok=True)
    db = apsw.Connection(str(path))
    try:
        check_integrity(db)
        if not db.execute("SELECT count(*) FROM sqlite_schema").get:
            return -2  # before the schema
        row = find_channel(db, Side.PROVIDER, rows.id)
        numbers = [int(name, 16) for (name,) in db.execute("SELECT request FROM receipt ORDER BY number")]
        assert numbers == list(range(1, len(numbers) + 1))
        if row is None:
            assert not numbers
            return -1
        assert row.deposit.balance == Amount(1_000_000)
        assert row.charged == Amount(5 * len(numbers))
        assert row.best == (rows.voucher(5 * len(numbers)) if numbers else None)
        assert row.last == (rows.signed(len(numbers), 5 * (len(numbers) - 1)) if numbers else None)
        return len(numbers)
    finally:
        db.close()


async def test_a_log_cut_at_any_frame_is_a_prefix_of_history(path: Path, tmp_path: Path, rows: Rows) -> None:
    database, log = await written(path, rows)
    frame = FRAME_HEADER + struct.unpack(">I", log[8:12])[0]
    frames = (len(log) - HEADER) // frame
    seen = [history(tmp_path, rows, database, log[: HEADER + n * frame]) for n in range(frames + 1)]
    assert seen == sorted(seen)
    assert seen[-1] == COMMITS
    assert set(seen) >= set(range(COMMITS + 1))
    torn = [history(tmp_path, rows, database, log[: HEADER + n * frame - 100]) for n in range(1, frames + 1)]
    assert torn == seen[:-1]
    assert history(tmp_path, rows, database, b"") == seen[0]


async def test_a_spoilt_log_is_a_prefix_of_history(path: Path, tmp_path: Path, rows: Rows) -> None:
    database, log = await written(path, rows)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.integers(0, len(log) - 1), flip=st.integers(1, 255))
    def spoil(place: int, flip: int) -> None:
        spoilt = bytearray(log)
        spoilt[place] ^= flip
        assert history(tmp_path, rows, database, bytes(spoilt)) <= COMMITS

    spoil()
