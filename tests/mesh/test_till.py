"""What a provider takes as payment, and what is durable before an answer ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.channel import SyncRequest
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.inference import Chunk
from llmesh.core.operations import Deposit, sign_operation
from llmesh.core.payment import Confirm, Payment, Reconcile
from llmesh.core.receipt import check_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import SignedVoucher, Voucher, channel_id, sign_voucher
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    MeshError,
    ModelFailed,
    ModelNotFound,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.journal.channels import find_channel
from llmesh.journal.columns import Side
from llmesh.journal.receipts import find_receipt
from tests.mesh.people import CHAIN, START, credentials, signer
from tests.mesh.shop import ANN, BOB, FEE, MODEL, ORDER, OTHER, Shop


@pytest.fixture
async def shop() -> Shop:
    made = Shop()
    await made.open()
    return made


async def test_a_charge_is_durable_with_voucher_and_receipt_before_the_end_is_told(
    shop: Shop, autojump_clock: MockClock
) -> None:
    attempt, voucher = shop.attempt(1, shop.voucher(100)), shop.voucher(100)
    async with shop.provider.serve(attempt, ANN) as events:
        for _ in range(3):
            await anext(events)
        assert await shop.charged() == 0
        last = await anext(events)
        assert isinstance(last, Chunk)
        assert last.values
        assert await shop.charged() == FEE.micro
        completed = await anext(events)
        assert isinstance(completed, Completed)
        row = await shop.journal.read(find_channel, Side.PROVIDER, shop.id)
        assert (row.charged, row.best, row.last) == (FEE, voucher, completed.receipt)
    check_receipt(completed.receipt, CHAIN)
    assert (completed.fee, completed.receipt.receipt.offer) == (FEE, shop.offer)


async def test_a_voucher_that_covers_more_is_good_without_being_sent_again(
    shop: Shop, autojump_clock: MockClock
) -> None:
    await shop.serve(shop.attempt(1, shop.voucher(200)))
    await shop.serve(shop.attempt(2, None))
    with pytest.raises(InsufficientBalance):
        await shop.serve(shop.attempt(3, None))
    assert await shop.charged() == 200


async def test_a_retry_gets_the_stored_receipt_and_output_also_after_a_restart(
    shop: Shop, autojump_clock: MockClock
) -> None:
    first = await shop.serve(shop.attempt(1, shop.voucher(100)))
    for _ in range(2):
        _, chunk, completed = await shop.serve(shop.attempt(1, None))
        assert chunk == Chunk(0, values={"text": "one two three"})
        assert isinstance(completed, Completed)
        assert isinstance(first[-1], Completed)
        assert completed.receipt == first[-1].receipt
        shop.restart()
        await shop.deploy()
    assert (await shop.charged(), shop.runtime.started) == (100, 1)


async def test_two_of_the_same_attempt_at_once_are_one(shop: Shop, autojump_clock: MockClock) -> None:
    attempt = shop.attempt(1, shop.voucher(500))
    async with shop.provider.serve(attempt, ANN) as events:
        await anext(events)
        with pytest.raises(Conflict):
            await shop.serve(attempt)
        assert len([event async for event in events]) == 4
    assert await shop.charged() == 100


def high(voucher: SignedVoucher) -> SignedVoucher:
    """The same signature in its other form, which a contract would refuse."""
    r, s, v = voucher.signature[:32], voucher.signature[32:64], voucher.signature[64]
    other = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
    return replace(voucher, signature=r + other + bytes((55 - v,)))


@pytest.mark.parametrize(
    ("voucher", "error"),
    [
        (lambda shop: None, InsufficientBalance),
        (lambda shop: shop.voucher(99), InsufficientBalance),
        (lambda shop: shop.voucher(100, by="bob"), ValidationFailed),
        (lambda shop: shop.voucher(100, chain=Chain(CHAIN.id + 1, CHAIN.contract)), ValidationFailed),
        (lambda shop: replace(shop.voucher(100), signature=bytes(65)), ValidationFailed),
        (lambda shop: replace(one := shop.voucher(100), signature=one.signature[:64]), ValidationFailed),
        (lambda shop: replace(shop.voucher(90), voucher=Voucher(shop.id, Amount(100))), ValidationFailed),
        (lambda shop: high(shop.voucher(100)), ValidationFailed),
        (
            lambda shop: sign_voucher(
                Voucher(channel_id(shop.channel("ann", 1), CHAIN), Amount(100)), CHAIN, signer("ann").sign
            ),
            ValidationFailed,
        ),
    ],
    ids=["none", "low", "key", "chain", "forged", "truncated", "raised", "high s", "channel"],
)  # fmt: skip
async def test_what_does_not_pay_is_refused_before_any_work(
    shop: Shop, autojump_clock: MockClock, voucher: object, error: type[MeshError]
) -> None:
    with pytest.raises(error):
        await shop.serve(shop.attempt(1, voucher(shop)))  # type: ignore[operator]
    assert (shop.runtime.started, shop.provider.running, await shop.charged()) == (0, 0, 0)
    await shop.serve(shop.attempt(2, shop.voucher(100)))


async def test_a_replayed_voucher_pays_nothing_twice(shop: Shop, autojump_clock: MockClock) -> None:
    old = shop.voucher(100)
    await shop.serve(shop.attempt(1, old))
    with pytest.raises(InsufficientBalance):
        await shop.serve(shop.attempt(2, old))
    with pytest.raises(InsufficientBalance, match="no such channel"):
        await shop.serve(shop.attempt(3, shop.voucher(900)), BOB)
    assert await shop.charged() == 100


async def test_more_than_the_deposit_is_not_covered_by_any_voucher(
    shop: Shop, autojump_clock: MockClock
) -> None:
    for number in range(1, 11):
        await shop.serve(shop.attempt(number, shop.voucher(10_000)))
    with pytest.raises(InsufficientBalance, match="deposit"):
        await shop.serve(shop.attempt(11, None))


async def test_who_pays_nothing_or_on_other_terms_is_told_so(shop: Shop, autojump_clock: MockClock) -> None:
    with pytest.raises(InsufficientBalance, match="members"):
        await shop.serve(replace(shop.attempt(1, None), payment=None))
    payment = Payment(shop.id, bytes(32), shop.voucher(100))
    with pytest.raises(ModelNotFound, match="other terms"):
        await shop.serve(replace(shop.attempt(1, None), payment=payment))


async def test_a_full_disk_means_no_answer_and_no_charge(shop: Shop, autojump_clock: MockClock) -> None:
    shop.journal.full = True
    with pytest.raises(TransactionFailed) as caught:
        await shop.serve(shop.attempt(1, shop.voucher(500)))
    assert caught.value.code == 3002
    shop.journal.full = False
    assert (await shop.reconcile(AttemptId(RequestId("1" * 32), 1))).charged == ()
    events = await shop.serve(shop.attempt(2, None))
    assert isinstance(events[-1], Completed)
    assert events[-1].receipt.charge.cumulative == FEE
    assert await shop.charged() == 100


async def test_many_that_fail_together_are_put_right_once(shop: Shop, autojump_clock: MockClock) -> None:
    shop.journal.delay, outcomes = 0.1, []

    async def one(number: int) -> None:
        try:
            outcomes.append((await shop.serve(shop.attempt(number, shop.voucher(1_000))))[-1])
        except TransactionFailed as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(1, 5):
            nursery.start_soon(one, number)
        shop.journal.full = True
        await trio.sleep(0.05)
        shop.journal.full = False
        for number in range(5, 9):
            nursery.start_soon(one, number)
    good = [event for event in outcomes if isinstance(event, Completed)]
    assert len(outcomes) == 8
    assert await shop.charged() == 100 * len(good)
    await shop.serve(shop.attempt(9, None))
    assert await shop.charged() == 100 * len(good) + 100


async def test_while_the_journal_cannot_be_read_the_channel_is_of_no_use(
    shop: Shop, autojump_clock: MockClock
) -> None:
    async with shop.provider.serve(shop.attempt(1, shop.voucher(500)), ANN) as events:
        await take(events, 3)
        shop.journal.full = shop.journal.unreadable = True
        with pytest.raises(TransactionFailed):
            await anext(events)
    with pytest.raises(TransactionFailed):
        await shop.serve(shop.attempt(2, None))
    shop.journal.full = shop.journal.unreadable = False
    await shop.serve(shop.attempt(3, None))
    assert await shop.charged() == 100


async def take(events: AsyncIterator[Event], count: int) -> None:
    for _ in range(count):
        await anext(events)


@pytest.mark.parametrize(("chunks", "share"), [(0, 0), (1, 0), (2, 10), (3, 100)])
async def test_a_stream_cut_by_its_consumer_costs_what_it_took(
    shop: Shop, autojump_clock: MockClock, chunks: int, share: int
) -> None:
    with trio.CancelScope() as scope:
        async with shop.provider.serve(shop.attempt(1, shop.voucher(100), max_tokens=10), ANN) as events:
            await take(events, 1 + chunks)
            scope.cancel()
            await trio.sleep(1)
    lost = AttemptId(RequestId("1" * 32), 1)
    receipts = (await shop.reconcile(lost)).charged
    assert [receipt.charge.price.micro for receipt in receipts] == [share] * bool(share)
    assert (await shop.charged(), shop.provider.running) == (share, 0)
    await shop.serve(shop.attempt(2, shop.voucher(200)))


async def test_a_stream_that_its_provider_breaks_or_leaves_costs_nothing(
    shop: Shop, autojump_clock: MockClock
) -> None:
    attempt = shop.attempt(1, shop.voucher(100), max_tokens=10)
    async with shop.provider.serve(attempt, ANN) as events:
        await take(events, 3)
        await shop.runtime.unload(MODEL)
        with pytest.raises(ModelFailed):
            await take(events, 3)
    await shop.deploy()
    with trio.CancelScope() as scope:
        async with shop.provider.serve(replace(attempt, number=2), ANN) as events:
            await take(events, 3)
            shop.till.close()
            scope.cancel()
            await trio.sleep(1)
    assert await shop.charged() == 0


async def test_a_failed_commit_of_a_cut_is_no_charge(shop: Shop, autojump_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        async with shop.provider.serve(shop.attempt(1, shop.voucher(100), max_tokens=10), ANN) as events:
            await take(events, 3)
            shop.journal.full = True
            scope.cancel()
            await trio.sleep(1)
    shop.journal.full = False
    assert (await shop.reconcile(AttemptId(RequestId("1" * 32), 1))).charged == ()
    await shop.serve(shop.attempt(2, None))
    assert await shop.charged() == 100


async def test_a_cancel_during_the_commit_does_not_part_charge_and_receipt(
    shop: Shop, autojump_clock: MockClock
) -> None:
    shop.journal.delay = 1.0
    with trio.move_on_after(0.5):
        await shop.serve(shop.attempt(1, shop.voucher(100)))
    row = await shop.journal.read(find_receipt, Side.PROVIDER, ANN.peer_id, AttemptId(RequestId("1" * 32), 1))
    assert row is not None
    assert await shop.charged() == 100
    shop.journal.delay = 0.0
    await shop.serve(shop.attempt(2, shop.voucher(200)))


async def test_an_offer_is_confirmed_before_any_deposit(autojump_clock: MockClock) -> None:
    shop = Shop()
    await shop.deploy()
    confirmed = await shop.provider.answer(Confirm(MODEL, shop.offer, FEE), ANN)
    assert confirmed == shop.till.confirm(shop.provider.offers[0], shop.offer)
    for asked in (
        Confirm(ModelId("b" * 64), shop.offer, FEE),
        Confirm(MODEL, bytes(32), FEE),
        Confirm(MODEL, shop.offer, Amount(99)),
    ):
        with pytest.raises(ModelNotFound):
            await shop.provider.answer(asked, ANN)
    with pytest.raises(InsufficientBalance, match="no deposit"):
        await shop.reconcile()


@pytest.mark.parametrize(
    "change",
    [
        lambda shop, asked: replace(asked, config=replace(asked.config, receiver=signer("bob").address)),
        lambda shop, asked: replace(asked, config=replace(asked.config, token=signer("bob").address)),
        lambda shop, asked: replace(asked, config=shop.channel("bob")),
        lambda shop, asked: replace(asked, binding=credentials("bob").binding(START)),
        lambda shop, asked: replace(asked, binding=replace(asked.binding, by_node=bytes(64))),
        lambda shop, asked: replace(asked, binding=credentials("ann", OTHER).binding(START)),
        lambda shop, asked: replace(asked, request=SyncRequest(shop.voucher(100, by="bob"), None)),
    ],
    ids=range(7),
)  # fmt: skip
async def test_only_its_payer_speaks_for_a_channel(
    shop: Shop, autojump_clock: MockClock, change: object
) -> None:
    good = Reconcile(shop.config, credentials("ann").binding(START), SyncRequest(None, None), Amount(0))
    with pytest.raises(ValidationFailed):
        await shop.provider.answer(change(shop, good), ANN)  # type: ignore[operator]


async def test_an_output_is_kept_for_an_hour_and_its_receipt_longer(
    shop: Shop, autojump_clock: MockClock
) -> None:
    await shop.serve(shop.attempt(1, shop.voucher(100)))
    shop.now = 3_500.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.till.run)
        await trio.sleep(90)
        assert len(await shop.serve(shop.attempt(1, None))) == 3
        shop.now = 3_700.0
        await trio.sleep(90)
        nursery.cancel_scope.cancel()
    accepted, completed = await shop.serve(shop.attempt(1, None))
    assert isinstance(completed, Completed)
    assert (accepted, await shop.charged()) == (Accepted(), 100)


async def test_what_arrives_late_by_an_old_session_is_refused(shop: Shop, autojump_clock: MockClock) -> None:
    await shop.reconcile(consumer=ANN._replace(session=9))
    with pytest.raises(Conflict, match="newer session"):
        await shop.serve(shop.attempt(1, shop.voucher(100)))


async def test_what_is_charged_is_not_signed_again_though_the_payer_comes_by_another_node(
    shop: Shop, autojump_clock: MockClock
) -> None:
    """Two receipts for one attempt on one channel would cost the provider its stake."""
    first = await shop.serve(shop.attempt(1, shop.voucher(100)))
    shop.restart()
    await shop.deploy()
    bound = replace(credentials("ann"), node=BOB.peer_id, sign_as_node=credentials("bob").sign_as_node)
    asked = Reconcile(
        shop.config, bound.binding(START), SyncRequest(None, None, (shop.attempt(1, None).id,)), Amount(0)
    )
    answer = await shop.provider.answer(asked, BOB)
    assert isinstance(first[-1], Completed)
    assert getattr(answer, "charged", None) == (first[-1].receipt,)
    again = await shop.serve(shop.attempt(1, shop.voucher(200)), BOB)
    assert isinstance(again[-1], Completed)
    assert again[-1].receipt == first[-1].receipt
    assert (await shop.charged(), shop.runtime.started) == (100, 1)


async def test_an_attempt_that_was_charged_is_not_answered_for_another_input(
    shop: Shop, autojump_clock: MockClock
) -> None:
    await shop.serve(shop.attempt(1, shop.voucher(100)))
    for _ in range(2):
        with pytest.raises(Conflict, match="another input"):
            await shop.serve(shop.attempt(1, shop.voucher(200), text="four five"))
        shop.restart()
        await shop.deploy()
    assert (await shop.charged(), shop.runtime.started) == (100, 1)


async def test_an_attempt_id_is_good_for_one_channel_of_a_peer(shop: Shop, autojump_clock: MockClock) -> None:
    """Else what it asked for on the second would be shown to it and could not be charged."""
    await shop.serve(shop.attempt(1, shop.voucher(100)))
    shop.take_other_channels(1)
    signed = sign_operation(
        signer("ann").address, 2, Deposit(shop.config, Amount(500)), CHAIN, signer("ann").sign
    )
    await shop.ledger.submit(signed)
    await shop.reconcile()
    with pytest.raises(Conflict):
        await shop.serve(shop.attempt(1, shop.voucher(100)))
    assert (await shop.charged(), shop.runtime.started) == (0, 1)
    await shop.serve(shop.attempt(2, shop.voucher(100)))
    assert await shop.charged() == 100
