"""Providers that sign what convicts them, and the stake that they lose by it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.evidence import Equivocation, Overcharge
from llmesh.core.ids import RequestId
from llmesh.core.operations import Bond
from llmesh.core.receipt import NO_CHARGE, Receipt, sign_receipt
from llmesh.errors import MeshError
from llmesh.journal.outbox import IntentState
from llmesh.journal.receipts import receipts_of
from llmesh.mesh.accuser import Accuser
from llmesh.mesh.teller import Accusation, Teller, accusations
from tests.mesh.conftest import clock
from tests.mesh.people import CHAIN, signer
from tests.mesh.test_payments import FEE, hang_up, request

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

Cheated: TypeAlias = "tuple[Mesh, Node]"
Lie: TypeAlias = dict[str, Callable[[Receipt], object]]
OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
STAKE = Amount.parse(100)


@asynccontextmanager
async def cheated(open_mesh: OpenMesh, **changes: Callable[[Receipt], object]) -> AsyncGenerator[Cheated]:
    """Ann has bought once from bob, who has a stake, and shows her a receipt that he signed anew."""
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await Teller(mesh.ledger, bob.journal, bob.credentials.signer, clock).perform(Bond(STAKE))
        result = await ann.router.infer(request())
        assert result.receipt is not None
        await trio.sleep(1)
        said = result.receipt.receipt
        other = replace(said, **{name: change(said) for name, change in changes.items()})  # type: ignore[arg-type]
        [account] = bob.till._accounts._accounts.values()
        account.channel.last = sign_receipt(other, CHAIN, signer("bob").sign)
        await hang_up(bob, 0)
        with suppress(MeshError):
            await ann.router.infer(request())
        await trio.sleep(1)
        yield mesh, ann


async def stake(mesh: Mesh) -> Amount:
    return (await mesh.ledger.account(signer("bob").address)).stake


async def brought(node: Node) -> list[Accusation]:
    return await accusations(node.journal, CHAIN, node.credentials.signer.address, 10)


OTHER_OUTPUT = {"work": lambda said: replace(said.work, output_digest=bytes(32))}
DEARER = {
    "attempt": lambda said: said.attempt._replace(number=9),
    "charge": lambda said: replace(said.charge, price=FEE + Amount(1), cumulative=FEE + Amount(1)),
}


@pytest.mark.parametrize(("lie", "kind"), [(OTHER_OUTPUT, Equivocation), (DEARER, Overcharge)])
async def test_what_convicts_a_provider_takes_its_stake(
    open_mesh: OpenMesh, autojump_clock: MockClock, lie: Lie, kind: type
) -> None:
    async with cheated(open_mesh, **lie) as (mesh, ann):
        assert await stake(mesh) == Amount(0)
        [one] = await brought(ann)
        assert (type(one.evidence), one.state) == (kind, IntentState.DONE)
        account = await mesh.ledger.account(signer("ann").address)
        assert account.balance >= Amount.parse(990 + 50) - Amount(1)


async def test_what_was_answered_in_an_earlier_life_counts_too(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with cheated(open_mesh) as (mesh, ann):
        [row] = await ann.journal.read(receipts_of, await _first_request(ann))
        accuser = Accuser(Teller(mesh.ledger, ann.journal, ann.credentials.signer, clock), ann.journal)
        other = replace(row.signed.receipt, issued_at=7)
        accuser.compare([sign_receipt(other, CHAIN, signer("bob").sign)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accuser.run)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert await stake(mesh) == Amount(0)


async def _first_request(node: Node) -> RequestId:
    return RequestId(node.journal.db.execute("SELECT request FROM receipt ORDER BY number").get)


@pytest.mark.parametrize(
    "lie",
    [
        {},
        {"attempt": lambda said: said.attempt._replace(number=9)},
        {"charge": lambda said: replace(NO_CHARGE, sequence=1), **OTHER_OUTPUT},
    ],
    ids=["the same", "another attempt", "free"],
)
async def test_what_proves_nothing_is_not_brought_to_the_ledger(
    open_mesh: OpenMesh, autojump_clock: MockClock, lie: Lie
) -> None:
    async with cheated(open_mesh, **lie) as (mesh, ann):
        assert (await stake(mesh), await brought(ann)) == (STAKE, [])


async def test_a_forged_receipt_neither_convicts_nor_hides_a_genuine_one(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with cheated(open_mesh) as (mesh, ann):
        [row] = await ann.journal.read(receipts_of, await _first_request(ann))
        genuine, said = row.signed, row.signed.receipt
        forged = sign_receipt(replace(said, issued_at=1), CHAIN, signer("cat").sign)
        other = sign_receipt(replace(said, issued_at=2), CHAIN, signer("bob").sign)
        accuser = Accuser(Teller(mesh.ledger, ann.journal, ann.credentials.signer, clock), ann.journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accuser.run)
            for receipt in (forged, genuine, forged, genuine):
                accuser.hear(receipt)
            await trio.sleep(1)
            assert (await stake(mesh), await brought(ann)) == (STAKE, [])
            for _ in range(3):
                accuser.hear(other)
            await trio.sleep(1)
            assert (await stake(mesh), len(await brought(ann))) == (Amount(0), 1)
            nursery.cancel_scope.cancel()
