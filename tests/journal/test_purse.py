"""A durable purse: nothing is sent before its mark is kept, and a crash never gives a budget twice."""

from __future__ import annotations

import pytest
import trio

from llmesh.core.account import Purse
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, RequestId
from llmesh.errors import InsufficientBalance, TransactionFailed
from llmesh.journal.purse import DurablePurse


def attempt(number: int) -> AttemptId:
    return AttemptId(RequestId(f"{number:032x}"), 1)


class Disk:
    def __init__(self) -> None:
        self.marks: list[Amount] = []
        self.fails = False
        self.slow = trio.Event()
        self.slow.set()

    async def keep(self, mark: Amount) -> None:
        await self.slow.wait()
        if self.fails:
            raise TransactionFailed("full")
        self.marks.append(mark)


async def test_of_two_hundred_at_once_exactly_one_hundred_hold(autojump_clock) -> None:
    disk, passed, refused = Disk(), [], []
    purse = DurablePurse(Purse(Amount(100)), disk.keep)

    async def spend(number: int) -> None:
        try:
            await purse.hold(attempt(number), Amount(1))
        except InsufficientBalance:
            refused.append(number)
            return
        await trio.sleep(1)
        purse.spend(attempt(number), Amount(1))
        passed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(spend, number)
    assert (len(passed), len(refused)) == (100, 100)
    assert purse.committed == disk.marks[-1] == Amount(100)
    assert len(disk.marks) <= 3


async def test_whoever_is_under_a_mark_waits_until_it_is_kept(autojump_clock) -> None:
    disk, held = Disk(), []
    disk.slow = trio.Event()
    purse = DurablePurse(Purse(Amount(100)), disk.keep)

    async def hold(number: int) -> None:
        await purse.hold(attempt(number), Amount(1))
        held.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(hold, number)
        await trio.sleep(1)
        assert not held
        disk.slow.set()
    assert len(held) == 5
    assert len(disk.marks) == 1


async def test_what_cannot_be_kept_is_not_held() -> None:
    disk = Disk()
    purse = DurablePurse(Purse(Amount(100)), disk.keep)
    disk.fails = True
    with pytest.raises(TransactionFailed):
        await purse.hold(attempt(1), Amount(60))
    disk.fails = False
    assert purse.left == Amount(100)
    await purse.hold(attempt(2), Amount(100))
    assert disk.marks == [Amount(100)]


async def test_a_cancelled_hold_holds_nothing(autojump_clock) -> None:
    disk = Disk()
    disk.slow = trio.Event()
    purse = DurablePurse(Purse(Amount(100)), disk.keep)
    with trio.move_on_after(1):
        await purse.hold(attempt(1), Amount(60))
    assert purse.left == Amount(100)


async def test_what_is_released_can_be_held_again() -> None:
    purse = DurablePurse(Purse(Amount(100), spent=Amount(90)), Disk().keep)
    await purse.hold(attempt(1), Amount(10))
    with pytest.raises(InsufficientBalance):
        await purse.hold(attempt(2), Amount(1))
    purse.release(attempt(1))
    purse.release(attempt(1))
    await purse.hold(attempt(2), Amount(10))
    assert purse.limit == purse.committed
