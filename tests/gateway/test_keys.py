"""Keys over a real journal: shown once, found by digest, gone when revoked, with budgets that last."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, PeerId, RequestId
from llmesh.errors import Conflict, InsufficientBalance, NotFound, Unauthorized, ValidationFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.keys import PREFIX, Keys, open_keys
from llmesh.journal.keys import KeyRow
from llmesh.journal.open import Journal, open_journal

OWNER = PeerId("12D3KooW" + "A" * 44)
SECRET = b"s" * 32
DAY = 86_400.0
INFER = frozenset({Scope.INFERENCE})


class Clock:
    now = 1000 * DAY + 5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(tmp_path: Path):
    async with open_journal(tmp_path / "journal.db", OWNER) as journal:
        yield journal


def attempt(number: int) -> AttemptId:
    return AttemptId(RequestId(f"{number:032x}"), 1)


async def spend(keys: Keys, row: KeyRow, number: int, amount: int) -> None:
    purse = keys.purse(row)
    assert purse is not None
    await purse.hold(attempt(number), Amount(amount))
    purse.spend(attempt(number), Amount(amount))


async def test_a_key_is_found_until_it_is_revoked_and_over_restarts(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        assert not keys.any
        row, text = await keys.create("laptop", INFER, None)
        assert text.startswith(PREFIX)
        assert len(text) == len(PREFIX) + 43
        assert keys.find(text) == row
        for wrong in (text[:-1], text + "x", PREFIX, "", "ü"):
            with pytest.raises(Unauthorized):
                keys.find(wrong)
    async with open_keys(journal, b"t" * 32, clock) as keys:
        with pytest.raises(Unauthorized):
            keys.find(text)
    async with open_keys(journal, SECRET, clock) as keys:
        assert keys.find(text) == row
        assert keys.any
        await keys.revoke("laptop")
        with pytest.raises(Unauthorized, match="revoked"):
            keys.find(text)
    async with open_keys(journal, SECRET, clock) as keys:
        assert not keys.any
        [kept] = keys.rows
        assert kept.revoked == clock.now
        with pytest.raises(Unauthorized, match="revoked"):
            keys.find(text)


async def test_an_expired_key_is_refused_and_still_closes_the_door(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        _, text = await keys.create("short", INFER, None, lifetime=60)
        clock.now += 59
        keys.find(text)
        clock.now += 1
        with pytest.raises(Unauthorized, match="expired"):
            keys.find(text)
        assert keys.any
        await keys.create("short", INFER, None)


async def test_names_are_told_apart(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        first, _ = await keys.create("a", INFER, None)
        with pytest.raises(Conflict):
            await keys.create("a", INFER, None)
        for bad in ("", " a", "a\n", "x" * 65):
            with pytest.raises(ValidationFailed):
                await keys.create(bad, INFER, None)
        with pytest.raises(NotFound, match="no key"):
            await keys.revoke("b")
        assert (await keys.revoke(first.id)).revoked is not None
        second, _ = await keys.create("a", INFER, None)
        assert (await keys.revoke("a")).id == second.id


async def test_of_two_made_at_once_under_one_name_one_is_refused(journal: Journal, clock: Clock) -> None:
    refused: list[Conflict] = []

    async def make() -> None:
        try:
            await keys.create("a", INFER, None)
        except Conflict as error:
            refused.append(error)

    async with open_keys(journal, SECRET, clock) as keys:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(make)
        assert (len(keys.rows), len(refused)) == (1, 1)


async def test_a_budget_is_for_a_day_and_outlives_a_stop(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        row, _ = await keys.create("a", INFER, Amount(100))
        await spend(keys, row, 1, 30)
    async with open_keys(journal, SECRET, clock) as keys:
        purse = keys.purse(row)
        assert purse is not None
        assert purse.left == Amount(70)
        with pytest.raises(InsufficientBalance):
            await spend(keys, row, 2, 71)
        await spend(keys, row, 3, 70)
        clock.now += DAY
        await spend(keys, row, 4, 100)
        clock.now -= DAY  # a clock that is set back gives nothing twice
        with pytest.raises(InsufficientBalance):
            await spend(keys, row, 5, 1)


async def test_a_crash_never_gives_a_budget_back(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        row, _ = await keys.create("a", INFER, Amount(1000))
        await spend(keys, row, 1, 2)
        async with open_keys(journal, SECRET, clock) as after_a_crash:  # nothing has been settled
            purse = after_a_crash.purse(row)
            assert purse is not None
            assert Amount(1000 - 64 * 2) <= purse.left <= Amount(998)


async def test_a_stop_without_spending_writes_nothing(journal: Journal, clock: Clock) -> None:
    async with open_keys(journal, SECRET, clock) as keys:
        await keys.create("a", INFER, Amount(100))
    before = await journal.read(lambda db: db.execute("SELECT commits FROM journal").get)
    async with open_keys(journal, SECRET, clock):
        pass
    assert before == await journal.read(lambda db: db.execute("SELECT commits FROM journal").get)
