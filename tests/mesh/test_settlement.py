"""What was earned reaches the account, in few claims, by itself and however often something breaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.encoding import parse_canonical_json
from llmesh.core.operations import Claim, Operation, Settle, sign_operation, unsigned_from_json
from llmesh.errors import InsufficientBalance, MeshError, NodeUnreachable, TransactionFailed
from llmesh.journal.channels import earned, unclaimed_channels
from llmesh.journal.outbox import waiting_intents
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.settlement import PERIOD, Settlement, SettlementSettings
from llmesh.mesh.teller import KIND, Teller
from tests.mesh.conftest import clock
from tests.mesh.people import CHAIN, signer
from tests.mesh.shop import Shop


class Counting(Teller):
    """Notes what it performs; `failure` is raised in its place."""

    def __init__(self, shop: Shop, ledger: MemoryLedger) -> None:
        super().__init__(ledger, shop.journal, shop.own.signer, clock)
        self.done: list[Operation] = []
        self.failure: MeshError | None = None

    async def perform(self, operation: Operation) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(operation)
        await super().perform(operation)


@pytest.fixture
async def shop() -> Shop:
    made = Shop()
    await made.open(deposit=10_000)
    return made


def settlement_of(shop: Shop) -> tuple[Settlement, Counting]:
    teller = Counting(shop, shop.ledger)
    return Settlement(shop.journal, shop.ledger, teller, SettlementSettings(clock=clock)), teller


@asynccontextmanager
async def running(settlement: Settlement) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(settlement.run)
        yield
        nursery.cancel_scope.cancel()


async def balance(shop: Shop) -> int:
    return (await shop.ledger.account(shop.own.signer.address)).balance.micro


async def earn(shop: Shop, first: int, last: int) -> None:
    for number in range(first, last + 1):
        await shop.serve(shop.attempt(number, shop.voucher(100 * number)))


async def test_little_waits_until_there_is_enough(shop: Shop, autojump_clock: MockClock) -> None:
    settlement, teller = settlement_of(shop)
    await earn(shop, 1, 4)
    await settlement.settle()
    assert (teller.done, await balance(shop)) == ([], 0)
    await earn(shop, 5, 5)
    await settlement.settle()
    assert [type(operation) for operation in teller.done] == [Claim, Settle]
    assert await balance(shop) == 500
    assert await shop.journal.read(unclaimed_channels) == []
    assert await shop.journal.read(earned) == Amount(500)
    await settlement.settle()
    assert len(teller.done) == 2


async def test_little_is_claimed_after_a_day(shop: Shop, autojump_clock: MockClock) -> None:
    settlement, _ = settlement_of(shop)
    await earn(shop, 1, 1)
    async with running(settlement):
        await trio.sleep(80_000)
        assert await balance(shop) == 0
        await trio.sleep(7_000)
        assert await balance(shop) == 100


async def test_what_earns_fast_is_claimed_once_a_minute(shop: Shop, autojump_clock: MockClock) -> None:
    settlement, teller = settlement_of(shop)
    await earn(shop, 1, 5)
    async with running(settlement):
        for first in range(6, 46, 5):  # a claim's worth every three seconds
            await trio.sleep(3)
            await earn(shop, first, first + 4)
        assert (len(teller.done), await balance(shop)) == (2, 500)
        await trio.sleep(60)
    assert (len(teller.done), await balance(shop)) == (4, 4_500)


async def test_a_withdrawal_is_met_by_a_claim_at_once(shop: Shop, autojump_clock: MockClock) -> None:
    settlement, _ = settlement_of(shop)
    await earn(shop, 1, 5)
    async with running(settlement):
        await trio.sleep(5)
        assert await balance(shop) == 500
        await earn(shop, 6, 6)
        operation = ops.InitiateWithdraw(shop.id, Amount(9_500))
        ann = signer("ann")
        await shop.ledger.submit(sign_operation(ann.address, 2, operation, CHAIN, ann.sign))
        await trio.sleep(4)
        assert await balance(shop) == 600


async def test_while_the_ledger_is_away_nothing_is_lost_and_nothing_claimed_twice(
    shop: Shop, autojump_clock: MockClock
) -> None:
    settlement, teller = settlement_of(shop)
    await earn(shop, 1, 9)
    teller.failure = TransactionFailed("The issuer is away.")
    async with running(settlement):
        await trio.sleep(300)
        assert await balance(shop) == 0
        teller.failure = None
        await trio.sleep(100)
    assert await balance(shop) == 900
    await settlement_of(shop)[0].settle()
    assert await balance(shop) == 900


async def test_one_claim_that_is_refused_holds_up_no_other(shop: Shop, autojump_clock: MockClock) -> None:
    settlement, teller = settlement_of(shop)
    await earn(shop, 1, 9)
    teller.failure = InsufficientBalance("No.")
    await settlement.settle()
    teller.failure = None
    await settlement.settle()
    assert await balance(shop) == 900


async def test_nothing_is_claimed_while_an_earlier_claim_waits(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    settlement, teller = settlement_of(shop)

    async def away(_: object) -> None:
        raise NodeUnreachable("The issuer is away.")

    async def waiting() -> list[Operation]:
        account = f"{CHAIN.id} {shop.own.signer.address.hex()}"
        found = await shop.journal.read(waiting_intents, KIND, account)
        return [unsigned_from_json(parse_canonical_json(intent.body)) for intent in found]

    await earn(shop, 1, 6)
    with monkeypatch.context() as patched:
        patched.setattr(shop.ledger, "submit", away)
        async with running(settlement):
            await trio.sleep(100)
            [first] = await waiting()
            await earn(shop, 7, 15)
            await trio.sleep(300)
            assert await waiting() == [first]
            assert len(teller.done) == 1, "while one waits it does not even ask"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(teller.run)
        nursery.start_soon(settlement.run)
        await trio.sleep(PERIOD + 10)
        nursery.cancel_scope.cancel()
    claimed = [operation.items[0].total.micro for operation in teller.done if isinstance(operation, Claim)]
    assert (claimed, await waiting(), await balance(shop)) == ([600, 1500], [], 1500)
