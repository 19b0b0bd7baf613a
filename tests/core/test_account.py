"""A budget is never passed: not by a burst, not by a crash."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.account import BLOCK, Purse
from llmesh.core.amount import Amount
from llmesh.errors import InsufficientBalance

from .paying import attempt, micro


async def test_of_two_hundred_spenders_at_once_exactly_a_hundred_pass() -> None:
    purse, passed, refused = Purse(micro(100)), [], []

    async def spender(n: int) -> None:
        await trio.lowlevel.checkpoint()
        try:
            purse.reserve(attempt(n), micro(1))
        except InsufficientBalance:
            refused.append(n)
            return
        await trio.lowlevel.checkpoint()
        purse.spend(attempt(n), micro(1))
        passed.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(1, 201):
            nursery.start_soon(spender, n)
    assert (len(passed), len(refused)) == (100, 100)
    assert purse.spent == micro(100)


def test_what_is_freed_can_be_spent_again() -> None:
    purse = Purse(micro(10))
    purse.reserve(attempt(1), micro(10))
    purse.release(attempt(1))
    purse.release(attempt(1))
    purse.reserve(attempt(2), micro(10))
    purse.spend(attempt(2), micro(4))
    assert purse.left == micro(6)


def test_refusals_change_nothing() -> None:
    purse = Purse(micro(10))
    purse.reserve(attempt(1), micro(6))
    with pytest.raises(InsufficientBalance, match=r"0\.000004"):
        purse.reserve(attempt(2), micro(5))
    with pytest.raises(RuntimeError):
        purse.reserve(attempt(1), micro(1))
    with pytest.raises(RuntimeError):
        purse.spend(attempt(1), micro(7))
    with pytest.raises(RuntimeError):
        purse.spend(attempt(2), micro(1))
    assert (purse.reserved, purse.spent) == (micro(6), micro(0))


def test_the_mark_moves_once_in_a_block() -> None:
    purse, marks = Purse(micro(1_000_000)), []
    for n in range(1, 4 * BLOCK + 1):
        marks.append(purse.reserve(attempt(n), micro(10)))
        purse.spend(attempt(n), micro(10))
    assert [mark for mark in marks if mark] == [micro(10 * BLOCK * n) for n in (1, 2, 3, 4)]


def test_a_restart_starts_from_the_mark_until_receipts_are_counted() -> None:
    purse = Purse(micro(1000))
    mark = purse.reserve(attempt(1), micro(10))
    assert mark is not None
    after = Purse(micro(1000), spent=mark)
    assert after.left == micro(1000 - 10 * BLOCK)
    after.corrected(micro(10))
    assert after.left == micro(990)
    after.corrected(micro(500))
    assert after.left == micro(990), "a correction never takes what was not marked"


steps = st.lists(
    st.tuples(st.sampled_from(["reserve", "spend", "release", "crash"]), st.integers(0, 9)), max_size=80
)


@given(st.integers(0, 60), steps)
def test_no_order_of_steps_passes_the_budget(limit: int, steps: list[tuple[str, int]]) -> None:
    purse, durable, truly_spent, held = Purse(Amount(limit)), micro(0), 0, {}
    for number, (step, size) in enumerate(steps, 1):
        if step == "reserve":
            try:
                durable = purse.reserve(attempt(number), Amount(size)) or durable
                held[attempt(number)] = size
            except InsufficientBalance:
                assert size > purse.left.micro
        elif step == "crash":  # what was under way is charged after all
            truly_spent += sum(held.values())
            purse, held = Purse(Amount(limit), spent=durable), {}
        elif held:
            of, quote = held.popitem()
            price = min(size, quote) if step == "spend" else 0
            truly_spent += price
            (purse.spend(of, Amount(price)) if step == "spend" else purse.release(of))
        assert truly_spent + sum(held.values()) <= limit
        assert truly_spent + sum(held.values()) <= durable.micro
