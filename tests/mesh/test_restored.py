"""A provider whose journal is an old backup again: what it signed since must not convict it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.channel import SyncRequest
from llmesh.core.evidence import Equivocation, convict
from llmesh.core.exchange import Completed
from llmesh.core.operations import Deposit, sign_operation
from llmesh.core.payer import LEFT
from llmesh.core.payment import Confirmed, Reconcile
from llmesh.core.receipt import SignedReceipt
from llmesh.errors import Conflict, MeshError, TransactionFailed, ValidationFailed
from llmesh.journal.channels import all_channels, reservations
from llmesh.journal.columns import Side
from llmesh.journal.schema import begin_anew, channel_salt
from llmesh.mesh.settlement import Settlement, SettlementSettings
from llmesh.mesh.teller import Teller
from llmesh.mesh.withdrawal import Withdrawal, WithdrawalSettings
from tests.mesh.conftest import clock
from tests.mesh.journals import QuickJournal
from tests.mesh.people import CHAIN, START, credentials, peer, signer
from tests.mesh.shop import ANN, FEE, Shop
from tests.mesh.test_payments import balance, charged, hang_up, request, second_life, spent
from tests.mesh.test_withdrawal import DAY, Later

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
MESH = Amount.parse


def copied(journal: QuickJournal, owner: str) -> QuickJournal:
    copy = QuickJournal(peer(owner))
    with copy.db.backup("main", journal.db, "main") as run:
        run.step(-1)
    return copy


async def receipt(shop: Shop, number: int) -> SignedReceipt:
    [*_, last] = await shop.serve(shop.attempt(number, shop.voucher(100 * number)))
    assert isinstance(last, Completed)
    assert last.receipt is not None
    return last.receipt


async def test_an_attempt_that_a_restored_provider_forgot_is_not_signed_again(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    await shop.open()
    await receipt(shop, 1)
    backup = copied(shop.journal, "shop")
    first = await receipt(shop, 2)

    shop.journal = copied(backup, "shop")
    shop.now += 5
    shop.restart()
    await shop.deploy()
    await shop.reconcile()
    second = await receipt(shop, 2)
    assert convict(Equivocation(first, second), CHAIN) == shop.own.signer.address, "a mere copy convicts it"

    shop.journal = backup
    begin_anew(backup.db, peer("shop"), b"s" * 32)
    shop.restart()
    await shop.deploy()
    shop.till.credentials = replace(shop.own, salt=channel_salt(backup.db))
    await shop.reconcile()
    for number in (2, 3):
        with pytest.raises(Conflict, match="another channel"):
            await receipt(shop, number)
    assert await shop.charged() == 100


async def test_a_journal_that_was_copied_back_is_noticed_by_the_first_reminder(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    await shop.open()
    await receipt(shop, 1)
    backup = copied(shop.journal, "shop")
    last = await receipt(shop, 2)
    shop.journal = backup
    shop.restart()
    await shop.deploy()
    await shop.reconcile()
    salts = [shop.till.credentials.salt]
    asked = Reconcile(shop.config, credentials("ann").binding(START), SyncRequest(None, last), Amount(0))
    for _ in range(2):
        shop.till._accounts._accounts.clear()
        await shop.provider.answer(asked, ANN)
        salts.append(shop.till.credentials.salt)
    assert salts[0] != salts[1] == salts[2] == channel_salt(backup.db)


async def test_on_a_channel_of_its_present_salt_it_is_paid(autojump_clock: MockClock) -> None:
    shop = Shop()
    await shop.open()
    shop.take_other_channels(7)
    deposit = Deposit(shop.config, Amount(500))
    ann = signer("ann")
    await shop.ledger.submit(sign_operation(ann.address, 2, deposit, CHAIN, ann.sign))
    await shop.reconcile()
    assert (await receipt(shop, 1)).charge.price == FEE


async def restore(bob: Node, backup: QuickJournal, mark: bytes) -> None:
    """Let a node be as after a restore and a start."""
    with bob.journal.db.backup("main", backup.db, "main") as run:
        run.step(-1)
    begin_anew(bob.journal.db, bob.peer_id, mark)
    bob.till._accounts._accounts.clear()
    bob.till._charges._known.clear()
    bob.till._charges._complete = False
    bob.till.credentials = replace(bob.till.credentials, salt=channel_salt(bob.journal.db))
    for session in bob.sessions.live():
        session.close()
    await trio.sleep(1)


async def test_payers_go_over_to_another_channel_and_nobody_loses_anything(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        backup = copied(bob.journal, "bob")
        for _ in range(4):
            await ann.router.infer(request())
        await restore(bob, backup, b"1" * 32)
        result = await ann.router.infer(request())
        assert result.receipt is not None
        assert (result.receipt.charge.sequence, result.receipt.charge.cumulative) == (1, MESH("0.1"))
        assert charged(bob) == MESH("0.6"), "it was reminded of what it had forgotten"
        await trio.sleep(1)
        rows = {row.config.salt: row for row in await ann.journal.read(all_channels, Side.PAYER)}
        assert {salt: row.broken for salt, row in rows.items()} == {bytes(32): LEFT, b"1" * 32: ""}
        await settle(mesh, ann, bob)
        left = await mesh.ledger.channel(rows[bytes(32)].id)
        assert left is not None
        assert (left.deposit.withdrawing, left.deposit.claimed) == (MESH("9.5"), MESH("0.5"))
        assert await ann.journal.read(reservations) == []
        async with second_life(ann, mesh) as (router, tabs):
            await router.infer(request())
            assert len(tabs._left) == 1


async def settle(mesh: Mesh, ann: Node, bob: Node) -> None:
    """The payer asks back what is left, and the provider claims what it earned meanwhile."""
    tellers = [Teller(mesh.ledger, node.journal, node.credentials.signer, clock) for node in (ann, bob)]
    settings = WithdrawalSettings(clock=clock)
    await Withdrawal(ann.journal, mesh.ledger, tellers[0], settings).withdraw()
    await Settlement(bob.journal, mesh.ledger, tellers[1], SettlementSettings(clock=clock)).settle()


async def test_what_was_in_flight_when_it_went_down_is_found_out(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        backup = copied(bob.journal, "bob")
        bob.runtime.delay = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up, bob, 0.5)
            with pytest.raises(MeshError):
                await ann.router.infer(request())
        await restore(bob, backup, b"1" * 32)
        bob.runtime.delay = 0.0
        await ann.router.infer(request())
        await trio.sleep(5)
        assert list(ann.payments.tabs.doubtful()) == []
        assert await ann.journal.read(reservations) == []
        assert spent(ann) == MESH("0.1")


async def test_a_provider_that_wants_ever_new_channels_does_not_get_them(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        for mark in (1, 2):
            await ann.router.infer(request())
            await restore(bob, copied(bob.journal, "bob"), bytes((mark,)) * 32)
        await ann.router.infer(request())
        await restore(bob, copied(bob.journal, "bob"), b"3" * 32)
        with pytest.raises(ValidationFailed, match="again and again"):
            await ann.router.infer(request())


async def test_where_no_other_channel_can_be_noted_it_is_tried_again(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        await restore(bob, copied(bob.journal, "bob"), b"1" * 32)
        ann.journal.full = True
        with pytest.raises(TransactionFailed):
            await ann.router.infer(request())
        ann.journal.full = False
        assert (await ann.router.infer(request())).receipt is not None
        assert await balance(mesh, "ann") == MESH("980"), "one deposit in each channel"
        assert len(ann.payments.tabs._left) == 1


async def test_a_channel_that_was_left_is_not_gone_back_to(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        for mark in (b"1" * 32, bytes(32)):
            await ann.router.infer(request())
            await restore(bob, copied(bob.journal, "bob"), mark)
        for _ in range(2):
            with pytest.raises(ValidationFailed, match="another channel"):
                await ann.router.infer(request())
        assert await balance(mesh, "ann") == MESH("980")
        assert len(ann.payments.tabs._left) == 1


async def test_nothing_is_paid_into_a_channel_that_its_provider_has_left(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="400")
        await ann.router.infer(request())
        bob.till.credentials = replace(bob.till.credentials, salt=b"1" * 32)
        await ann.router.infer(request())
        paid_in = {cell.config.salt: cell.deposit.balance for cell in mesh.ledger._books.channels.values()}
        assert paid_in == {bytes(32): MESH(500), b"1" * 32: MESH(400)}


async def test_a_deposit_is_not_filled_up_where_its_provider_has_left_the_channel(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        for _ in range(50):
            await ann.router.infer(request())
        confirm = bob.till.confirm

        def confirm_another(offer: Offer, digest: bytes) -> Confirmed:
            bob.till.credentials = replace(bob.till.credentials, salt=b"1" * 32)
            return confirm(offer, digest)

        bob.till.confirm = confirm_another  # type: ignore[method-assign]
        await ann.router.infer(request())
        await trio.sleep(5)
        assert await balance(mesh, "ann") == MESH(990)
        await ann.router.infer(request())
        assert [tab.channel.config.salt for tab in ann.payments.tabs._tabs.values()] == [b"1" * 32]


async def test_a_payer_that_leaves_once_it_has_reminded_changes_nothing_about_that(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    await shop.open()
    backup = copied(shop.journal, "shop")
    last = await receipt(shop, 1)
    shop.journal = backup
    shop.restart()
    await shop.deploy()
    await shop.reconcile()
    backup.delay = 1.0
    asked = Reconcile(shop.config, credentials("ann").binding(START), SyncRequest(None, last), Amount(0))
    with trio.move_on_after(0.5):
        await shop.provider.answer(asked, ANN)
    assert await shop.charged() == 100
    assert shop.till.credentials.salt == channel_salt(backup.db) != bytes(32)


async def test_what_a_provider_has_yet_to_claim_keeps_nobody_from_going_over(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        later = Later(mesh)
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        back = later.withdrawing(ann, mesh.ledger)
        for mark in (1, 2, 3):
            await ann.router.infer(request())
            await trio.sleep(1)
            for _ in range(2):
                await back.withdraw()
                later.shift += DAY + 60
            await restore(bob, copied(bob.journal, "bob"), bytes((mark,)) * 32)
        assert (await ann.router.infer(request())).receipt is not None
