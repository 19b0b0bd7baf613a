"""Claims: by value, by age, at once on a withdrawal; each once, whatever becomes of the ledger."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmesh.core import operations as ops
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.operations import SignedOperation, sign_operation
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, Work, sign_receipt
from llmesh.core.signer import Signer
from llmesh.core.voucher import ChannelConfig, ChannelId, Voucher, channel_id, sign_voucher
from llmesh.errors import MeshError, NetworkError, NodeUnreachable
from llmesh.journal.channels import AddChannel, ChannelRow, find_channel
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal, open_journal
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.settlement import Settlement, SettlementSettings
from llmesh.mesh.teller import Teller
from tests.core.banking import ALICE, BOB, CHAIN, GENESIS, ISSUER, SIGN, config

ME, PEER = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
WORK = Work(ModelId("ab" * 32), "fp32-strict", b"i" * 32, b"o" * 32)
STEPS, ROUNDS = 6, 6
SETTINGS = SettlementSettings(value=Amount(100), age=3_600, cost=Amount(2), period=600)


class FarLedger(MemoryLedger):
    """`lost` is raised once an operation was entered, `away` before."""

    lost: MeshError | None = None
    away: MeshError | None = None
    came: int = 0

    async def submit(self, signed: SignedOperation) -> None:
        if self.away is not None:
            raise self.away
        self.came += 1
        await super().submit(signed)
        if self.lost is not None:
            raise self.lost

    async def do(self, actor: Address, operation: ops.Operation) -> None:
        nonce = (await self.account(actor)).nonce + 1
        await super().submit(sign_operation(actor, nonce, operation, CHAIN, SIGN[actor]))


@dataclass
class Shop:
    """BOB sells to ALICE over channels; what is charged stands in the journal."""

    ledger: FarLedger
    journal: Journal
    teller: Teller
    settlement: Settlement
    noted: list[tuple[ChannelId, Deposit]] = field(default_factory=list)

    async def open(self, salt: int, deposit: int = 300) -> ChannelConfig:
        channel = config(ALICE, BOB, salt)
        await self.ledger.do(ALICE, ops.Deposit(channel, Amount(deposit)))
        row = ChannelRow(Side.PROVIDER, channel_id(channel, CHAIN), PEER, channel, Deposit(Amount(deposit)))
        await self.journal.commit(AddChannel(row))
        return channel

    async def sell(self, channel: ChannelConfig, price: int, sequence: int = 1, before: int = 0) -> None:
        mark = channel_id(channel, CHAIN)
        total = Amount(before + price)
        voucher = sign_voucher(Voucher(mark, total + Amount(50)), CHAIN, SIGN[ALICE])
        attempt = AttemptId(RequestId(f"{channel.salt[0]:02x}{sequence:030x}"), 1)
        charge = Charge(mark, sequence, Amount(price), total)
        receipt = sign_receipt(Receipt(BOB, attempt, NO_OFFER, WORK, charge, 1), CHAIN, SIGN[BOB])
        await self.journal.commit(RecordCharge(PEER, receipt, voucher))

    async def balance(self) -> int:
        return (await self.ledger.account(BOB)).balance.micro

    async def claimed(self) -> int:
        return (await self.ledger.account(BOB)).claimed.micro


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncGenerator[Shop]:
    ledger = FarLedger(GENESIS, SIGN[ISSUER], trio.current_time)
    async with open_journal(tmp_path / "journal.db", ME) as journal:
        teller = Teller(ledger, journal, Signer(BOB, SIGN[BOB]), trio.current_time)
        noted: list[tuple[ChannelId, Deposit]] = []

        def note(channel: ChannelId, deposit: Deposit) -> None:
            noted.append((channel, deposit))

        settlement = Settlement(ledger, journal, teller, note, SETTINGS)
        yield Shop(ledger, journal, teller, settlement, noted)


async def look(shop: Shop, seconds: float) -> None:
    """Let the settlement and the teller run for so long; their threads take real time, their waits none."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.teller.run)
        nursery.start_soon(shop.settlement.run)
        for step in (0, *[seconds / STEPS] * STEPS):
            clock.jump(step)
            for _ in range(ROUNDS):
                await shop.journal.commit()
                await wait_all_tasks_blocked(0.003)
        nursery.cancel_scope.cancel()


async def test_little_waits_until_it_is_old(shop: Shop, mock_clock) -> None:
    await shop.sell(await shop.open(1), 10)
    await look(shop, 3_000)
    assert await shop.claimed() == 0
    await look(shop, 1_000)
    assert (await shop.claimed(), await shop.balance()) == (10, 10)
    await look(shop, 8_000)
    assert shop.ledger.came == 2  # a claim and a settle, and nothing more


async def test_much_is_claimed_at_once_in_one_operation(shop: Shop, mock_clock) -> None:
    for salt in (1, 2):
        await shop.sell(await shop.open(salt), 60)
    await look(shop, 1)
    assert (await shop.balance(), shop.ledger.came) == (120, 2)


async def test_what_costs_more_than_it_brings_is_left(shop: Shop, mock_clock) -> None:
    await shop.sell(await shop.open(1), 2)
    await look(shop, 10_000)
    assert await shop.claimed() == 0
    await shop.settlement.settle()
    assert await shop.balance() == 2


async def test_a_withdrawal_is_answered_at_once(shop: Shop, mock_clock) -> None:
    channel = await shop.open(1)
    await shop.sell(channel, 1)
    await look(shop, 1)
    mark = channel_id(channel, CHAIN)
    await shop.ledger.do(ALICE, ops.InitiateWithdraw(mark, Amount(299)))
    await look(shop, 1)
    assert (await shop.balance(), await shop.claimed()) == (1, 1)
    assert shop.noted[0] == (mark, Deposit(Amount(300), Amount(0), Amount(299)))
    row = await shop.journal.read(find_channel, Side.PROVIDER, mark)
    assert row is not None
    assert row.deposit.withdrawing == Amount(299)


async def test_a_claim_whose_answer_was_lost_is_not_made_again(shop: Shop, mock_clock) -> None:
    channel = await shop.open(1)
    await shop.sell(channel, 100)
    shop.ledger.lost = NetworkError("The answer was lost.")
    await look(shop, 0.5)
    await shop.sell(channel, 100, 2, 100)
    await look(shop, 30)
    shop.ledger.lost = None
    await look(shop, 300)
    assert (await shop.claimed(), await shop.balance()) == (200, 200)
    assert (await shop.ledger.account(BOB)).nonce <= 4


async def test_an_absent_ledger_is_waited_for_over_a_restart(shop: Shop, mock_clock) -> None:
    await shop.sell(await shop.open(1), 150)
    shop.ledger.away = NodeUnreachable("The issuer is away.")
    await look(shop, 500)
    assert await shop.claimed() == 0
    shop.ledger.away = None
    teller = Teller(shop.ledger, shop.journal, Signer(BOB, SIGN[BOB]), trio.current_time)
    again = Settlement(shop.ledger, shop.journal, teller, lambda *_: None, SETTINGS)
    await look(Shop(shop.ledger, shop.journal, teller, again), 300)
    assert (await shop.claimed(), await shop.balance()) == (150, 150)


async def test_a_channel_that_the_ledger_does_not_have_is_left_alone(shop: Shop, mock_clock) -> None:
    channel = config(ALICE, BOB, 9)
    row = ChannelRow(Side.PROVIDER, channel_id(channel, CHAIN), PEER, channel, Deposit(Amount(300)))
    await shop.journal.commit(AddChannel(row))
    await shop.sell(channel, 200)
    await shop.settlement.settle()
    assert shop.ledger.came == 0


async def test_never_more_than_the_deposit_is_claimed(shop: Shop, mock_clock) -> None:
    channel = await shop.open(1, 120)
    await shop.sell(channel, 110)
    await shop.ledger.do(BOB, ops.Refund(channel_id(channel, CHAIN), Amount(50)))
    await shop.settlement.settle()
    assert await shop.balance() == 70
