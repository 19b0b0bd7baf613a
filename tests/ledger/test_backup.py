"""Backups of a ledger: one moment of it, and never put over one that knows more."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.operations import sign_operation
from llmesh.errors import Conflict, TransactionFailed, ValidationFailed
from llmesh.ledger.backup import restore, write_backup
from llmesh.ledger.local import open_local_ledger, verify_ledger
from tests.core.banking import ALICE, CHAIN, GENESIS, ISSUER, SIGN


async def grow(path: Path, count: int, saved: Path | None = None) -> None:
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER]) as ledger:
        for _ in range(count):
            nonce = (await ledger.account(ISSUER)).nonce + 1
            mint = ops.Mint(ALICE, Amount(5))
            await ledger.submit(sign_operation(ISSUER, nonce, mint, CHAIN, SIGN[ISSUER]))
        if saved is not None:
            write_backup(path, saved)


async def test_what_was_saved_in_use_comes_back(tmp_path: Path) -> None:
    path, saved, again = (tmp_path / name for name in ("ledger.db", "saved.db", "again.db"))
    await grow(path, 3, saved)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    restore(saved, again)
    assert verify_ledger(again).head == verify_ledger(path).head
    await grow(path, 1, saved)
    assert verify_ledger(saved).head.sequence == 4
    restore(saved, path)
    with pytest.raises(Conflict, match="older"):
        restore(saved, again)
    assert verify_ledger(again).head.sequence == 3
    await grow(again, 1)


async def test_a_ledger_that_knows_more_stays(tmp_path: Path) -> None:
    path, saved = tmp_path / "ledger.db", tmp_path / "saved.db"
    await grow(path, 2, saved)
    await grow(path, 2)
    restore(saved, path)
    assert verify_ledger(path).head.sequence == 4


async def test_what_is_damaged_or_anothers_is_refused(tmp_path: Path) -> None:
    path, saved = tmp_path / "ledger.db", tmp_path / "saved.db"
    await grow(path, 2, saved)
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValidationFailed):
        restore(saved, tmp_path / "nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()
    saved.write_bytes(whole)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(Conflict, match="Move it away"):
        restore(saved, path)
    with pytest.raises(TransactionFailed):
        write_backup(saved, tmp_path / "no folder" / "saved.db")
