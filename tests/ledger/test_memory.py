"""The ledger in memory: operations are entered once, refused ones change nothing, waiters hear of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.books import EMPTY
from llmesh.core.operations import Operation, SignedOperation, sign_operation
from llmesh.core.voucher import channel_id
from llmesh.errors import Conflict, InsufficientBalance, ValidationFailed
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.ledger.memory import MemoryLedger
from tests.core.banking import ALICE, BOB, CHAIN, GENESIS, ISSUER, SIGN, config

if TYPE_CHECKING:
    from llmesh.core.address import Address


def signed(actor: Address, nonce: int, operation: Operation) -> SignedOperation:
    return sign_operation(actor, nonce, operation, CHAIN, SIGN[actor])


@pytest.fixture
async def ledger() -> MemoryLedger:
    return MemoryLedger(GENESIS, SIGN[ISSUER], trio.current_time)


async def test_it_begins_with_its_genesis(ledger: Ledger) -> None:
    assert (ledger.chain, ledger.min_stake, ledger.height) == (CHAIN, Amount(100), 0)
    assert (await ledger.account(ALICE)).balance == Amount(1_000)
    assert await ledger.account(BOB) == EMPTY
    assert await ledger.channel(channel_id(config(ALICE, BOB), CHAIN)) is None


async def test_an_operation_is_entered_once_and_shown(ledger: Ledger) -> None:
    deposit = signed(ALICE, 1, ops.Deposit(config(ALICE, BOB), Amount(400)))
    for _ in range(3):
        await ledger.submit(deposit)
        await ledger.submit(signed(ALICE, 1, ops.Deposit(config(ALICE, BOB), Amount(400))))
    channel = await ledger.channel(channel_id(config(ALICE, BOB), CHAIN))
    assert channel is not None
    assert channel.deposit.balance == Amount(400)
    assert ((await ledger.account(ALICE)).balance, ledger.height) == (Amount(600), 1)


async def test_what_is_refused_changes_nothing(ledger: Ledger) -> None:
    bond = signed(ALICE, 1, ops.Bond(Amount(10)))
    await ledger.submit(bond)
    before = await ledger.account(ALICE)
    refused: list[tuple[SignedOperation, type[Exception]]] = [
        (signed(ALICE, 1, ops.Bond(Amount(11))), Conflict),
        (signed(ALICE, 3, ops.Bond(Amount(11))), Conflict),
        (signed(ALICE, 2, ops.Bond(Amount(991))), InsufficientBalance),
        (replace(bond, signature=bytes(65)), ValidationFailed),
        (replace(signed(ALICE, 2, ops.Bond(Amount(1))), actor=BOB), ValidationFailed),
    ]
    for operation, error in refused:
        assert error in REFUSALS
        with pytest.raises(error):
            await ledger.submit(operation)
    assert (await ledger.account(ALICE), ledger.height) == (before, 1)


async def test_its_time_is_that_of_its_clock(ledger: Ledger, autojump_clock: MockClock) -> None:
    await ledger.submit(signed(ALICE, 1, ops.Bond(Amount(10))))
    await ledger.submit(signed(ALICE, 2, ops.StartUnbond(Amount(10))))
    await trio.sleep(3_599)
    with pytest.raises(Conflict) as caught:
        await ledger.submit(signed(ALICE, 3, ops.Withdraw()))
    assert caught.value.retry_after == 1
    await trio.sleep(1)
    await ledger.submit(signed(ALICE, 3, ops.Withdraw()))
    assert (await ledger.account(ALICE)).balance == Amount(1_000)


async def test_whoever_waits_hears_of_what_comes(ledger: Ledger) -> None:
    heard: list[int] = []

    async def wait(height: int) -> None:
        heard.append(await ledger.after(height))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 0)
        nursery.start_soon(wait, 1)
        await wait_all_tasks_blocked()
        await ledger.submit(signed(ALICE, 1, ops.Bond(Amount(10))))
        await wait_all_tasks_blocked()
        assert heard == [1]
        await ledger.submit(signed(ALICE, 2, ops.Bond(Amount(10))))
    assert heard == [1, 2]
    assert await ledger.after(0) == 2
