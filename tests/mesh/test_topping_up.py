"""Deposits are made up ahead of need, so that no request waits for the ledger."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.operations import Deposit, SignedOperation
from llmesh.errors import ModelNotFound, NodeUnreachable
from tests.mesh.test_payments import FEE, balance, charged, request, spent

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
FULL = Amount.parse(10)
"""A hundred inferences."""


class SlowIssuer:
    """An issuer that takes its time over deposits, or is away; notes which were made."""

    def __init__(self, mesh: Mesh) -> None:
        self.away = False
        self.made: list[Amount] = []
        self._submit = mesh.ledger.submit
        mesh.ledger.submit = self.submit  # type: ignore[method-assign]

    async def submit(self, signed: SignedOperation) -> None:
        await trio.sleep(2)
        if self.away:
            raise NodeUnreachable("The issuer is away.")
        await self._submit(signed)
        if isinstance(signed.operation, Deposit):
            self.made.append(signed.operation.amount)


async def ask(node: Node, times: int) -> float:
    """Seconds of the slowest of so many requests, two in each second; never is too much in advance."""
    slowest = 0.0
    for _ in range(times):
        since = trio.current_time()
        await node.router.infer(request())
        slowest = max(slowest, trio.current_time() - since)
        [tab] = node.payments.tabs._tabs.values()
        before = tab.channel.books.spent
        assert tab.channel.deposit.balance - before <= max(FULL, before)
        await trio.sleep(0.5)
    return slowest


async def test_no_request_waits_for_a_deposit_but_the_first(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        issuer, ann, bob = SlowIssuer(mesh), await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        assert await ask(ann, 1) >= 2
        assert issuer.made == [FULL]
        assert await ask(ann, 249) < 0.5
        assert spent(ann) == charged(bob) == Amount(250 * FEE.micro)
        assert all(made >= Amount(FULL.micro // 2) for made in issuer.made), "few, and not small"
        deposited = sum(made.micro for made in issuer.made)
        assert (await balance(mesh, "ann")).micro == Amount.parse(1000).micro - deposited


async def test_the_more_is_bought_the_more_seldom_something_is_paid_in(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        issuer, ann, bob = SlowIssuer(mesh), await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ask(ann, 800)
        assert len(issuer.made) <= 10  # each time for a third more than until then
        assert charged(bob) == Amount(800 * FEE.micro)


async def test_while_the_issuer_is_away_no_more_is_asked_for_than_once(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        issuer, ann, bob = SlowIssuer(mesh), await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ask(ann, 40)
        issuer.away = True
        assert await ask(ann, 55) < 0.5
        issuer.away = False
        await trio.sleep(90)
        assert len(issuer.made) == 2
        assert await ask(ann, 60) < 0.5


async def test_little_money_is_not_put_in_drop_by_drop(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        issuer, ann, bob = SlowIssuer(mesh), await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="12")  # half of a thousand lasts for 41
        await ask_dear(ann, 41)
        assert issuer.made == [Amount.parse(500)]
        await ask_dear(ann, 20)
        assert issuer.made == [Amount.parse(500), Amount.parse(250)]


async def ask_dear(node: Node, times: int) -> None:
    for _ in range(times):
        await node.router.infer(request())
        await trio.sleep(0.5)


async def test_a_provider_that_offers_it_no_more_gets_no_more(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        issuer, ann, bob = SlowIssuer(mesh), await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ask(ann, 50)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bob.till, "confirm", _never)
            await ask(ann, 30)
        assert issuer.made == [FULL]
        await trio.sleep(60)
        await ask(ann, 1)
        await trio.sleep(10)
        assert len(issuer.made) == 2


def _never(*_: object) -> None:
    raise ModelNotFound("It is not on offer here.")
