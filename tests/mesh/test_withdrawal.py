"""Deposits that come back by themselves: from who cheated, and from where nothing is bought any more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, RequestId
from llmesh.journal.outbox import dead_intents
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.settlement import Settlement, SettlementSettings
from llmesh.mesh.teller import Teller
from llmesh.mesh.withdrawal import Withdrawal, WithdrawalSettings
from tests.mesh.conftest import clock
from tests.mesh.people import BANK, GENESIS
from tests.mesh.test_payments import FEE, balance, charged, request, spent

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
DAY = 86_400


class Later:
    """The ledger's time, which may be moved on without anybody waiting."""

    def __init__(self, mesh: Mesh) -> None:
        self.shift = self.away = 0.0
        mesh.ledger = MemoryLedger(GENESIS, BANK.sign, lambda: self.clock() - self.away)

    def clock(self) -> float:
        return clock() + self.shift

    def withdrawing(self, node: Node, ledger: MemoryLedger) -> Withdrawal:
        teller = Teller(ledger, node.journal, node.credentials.signer, clock)
        return Withdrawal(node.journal, ledger, teller, WithdrawalSettings(clock=self.clock))


async def one_deposit(ledger: MemoryLedger) -> tuple[Amount, Amount]:
    """Of the only channel: what is in it, and what is on its way back."""
    [cell] = ledger._books.channels.values()
    return cell.deposit.balance, cell.deposit.withdrawing


async def test_a_channel_that_is_not_used_gives_back_what_was_not_spent(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        await trio.sleep(1)
        ledger, back = mesh.ledger, later.withdrawing(ann, mesh.ledger)
        later.shift += 13 * DAY
        await back.withdraw()
        assert await one_deposit(ledger) == (Amount.parse(10), Amount(0))
        later.shift += 2 * DAY
        await back.withdraw()
        await back.withdraw()
        assert await one_deposit(ledger) == (Amount.parse(10), Amount.parse("9.9"))
        later.shift += DAY / 2
        await back.withdraw()  # its provider may still claim
        assert await balance(mesh, "ann") == Amount.parse(990)
        later.shift += DAY
        await back.withdraw()
        await back.withdraw()
        assert await balance(mesh, "ann") == Amount.parse("999.9")
        assert await one_deposit(ledger) == (FEE, Amount(0))
        teller = Teller(ledger, bob.journal, bob.credentials.signer, clock)
        await Settlement(bob.journal, ledger, teller, SettlementSettings(clock=clock)).settle()
        assert await balance(mesh, "bob") == Amount.parse("1000.1")


async def test_a_channel_may_be_bought_on_while_its_deposit_is_on_the_way_back(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        await trio.sleep(1)
        back = later.withdrawing(ann, mesh.ledger)
        later.shift += 15 * DAY
        await back.withdraw()
        for _ in range(3):
            assert (await ann.router.infer(request())).fee == FEE
        later.shift += DAY + 60
        await back.withdraw()
        await ann.router.infer(request())
        assert spent(ann) == charged(bob) == Amount.parse("0.5")
        deposit, _ = await one_deposit(mesh.ledger)
        assert deposit >= charged(bob)


async def test_a_ledger_whose_time_stood_still_is_not_pressed(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        await trio.sleep(1)
        back = later.withdrawing(ann, mesh.ledger)
        later.shift += 15 * DAY
        await back.withdraw()
        later.shift += DAY
        later.away += DAY / 2  # the issuer was down
        height = mesh.ledger.height
        for _ in range(3):
            await back.withdraw()
        [dead] = await ann.journal.read(dead_intents, "ledger", 9)
        assert "possible in" in dead.last_error
        assert mesh.ledger.height == height
        later.shift += DAY / 2 + 60
        await back.withdraw()
        assert await balance(mesh, "ann") == Amount.parse("999.9")


async def test_a_provider_that_cheated_keeps_no_deposit(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        [tab] = ann.payments.tabs._tabs.values()
        tab.channel.broken = "It has charged too much."
        ann.payments.tabs.backlog.add_books(tab.books)
        await trio.sleep(1)
        await later.withdrawing(ann, mesh.ledger).withdraw()
        assert await one_deposit(mesh.ledger) == (Amount.parse(10), Amount.parse(10))


async def test_what_is_in_doubt_is_left_where_it_is(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        [tab] = ann.payments.tabs._tabs.values()
        ann.nursery.cancel_scope.cancel()
        ann.payments.tabs.lose(tab, ann_attempt(), FEE, None)
        await ann.payments.tabs.backlog.flush()
        later.shift += 30 * DAY
        await later.withdrawing(ann, mesh.ledger).withdraw()
        assert await one_deposit(mesh.ledger) == (Amount.parse(10), Amount(0))


def ann_attempt() -> AttemptId:
    return AttemptId(RequestId("f" * 32), 1)
