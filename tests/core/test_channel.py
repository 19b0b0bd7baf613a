"""Both sides of a channel where one of them cheats, forgets, or runs into a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.channel import MAX_ATTEMPTS, Deposit, ProviderBooks, ProviderChannel, Sync, SyncRequest
from llmesh.core.ids import AttemptId
from llmesh.core.payer import AHEAD, PayerBooks, PayerChannel, window
from llmesh.core.receipt import Charge, SignedReceipt, sign_receipt
from llmesh.core.voucher import ChannelId, Voucher, sign_voucher
from llmesh.errors import Conflict, InsufficientBalance, NodeBusy, ValidationFailed

from .paying import (
    CHAIN,
    SIGN_AS_PAYER,
    SIGN_AS_PROVIDER,
    SIGN_AS_STRANGER,
    attempt,
    micro,
    payer,
    provider,
    receipt_for,
)

SESSION = 2
"""No test that pays has a newer one."""


def pay(payer: PayerChannel, provider: ProviderChannel, of: AttemptId, price: int = 10) -> SignedReceipt:
    """One attempt that goes well."""
    voucher = payer.reserve(of, micro(price), SIGN_AS_PAYER)
    assert provider.admit(of, micro(price), voucher, SESSION) is None
    receipt = receipt_for(of, provider.charge(of, micro(price)))
    provider.committed(receipt)
    payer.ack(receipt)
    return receipt


def test_the_window_opens_with_good_receipts() -> None:
    assert [window(n) for n in (0, 3, 4, 16, 32, 256, 9999)] == [1, 1, 4, 4, 8, 64, 64]
    assert all(window(n) <= window(n + 1) for n in range(300))


def test_a_stranger_gets_one_request_and_no_more_than_its_price() -> None:
    consumer = payer()
    consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    assert consumer.exposure == micro(10)
    with pytest.raises(NodeBusy):
        consumer.reserve(attempt(2), micro(10), SIGN_AS_PAYER)


def test_a_voucher_is_signed_once_for_many_requests() -> None:
    consumer = PayerChannel(payer().config, CHAIN, Deposit(micro(10_000)))
    consumer.books = replace(consumer.books, good=256)
    vouchers = {consumer.reserve(attempt(n), micro(10), SIGN_AS_PAYER) for n in range(1, AHEAD + 1)}
    assert len(vouchers) == 1
    assert consumer.exposure == micro(10 * AHEAD)


def test_a_voucher_is_never_above_the_deposit() -> None:
    consumer = payer(25)
    consumer.books = replace(consumer.books, good=256)
    assert consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER).ceiling == micro(25)
    consumer.reserve(attempt(2), micro(10), SIGN_AS_PAYER)
    with pytest.raises(InsufficientBalance):
        consumer.reserve(attempt(3), micro(10), SIGN_AS_PAYER)


def test_a_refused_request_leaves_its_voucher_usable() -> None:
    consumer = payer()
    first = consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    consumer.release(attempt(1))
    consumer.release(attempt(1))
    assert consumer.reserve(attempt(2), micro(10), SIGN_AS_PAYER) is first


def test_an_attempt_is_reserved_once() -> None:
    consumer = payer()
    consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    with pytest.raises(Conflict):
        consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    consumer.release(attempt(1))
    with pytest.raises(Conflict):
        consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)


def test_paying_needs_a_sync_after_a_restart() -> None:
    with pytest.raises(RuntimeError):
        payer(books=PayerBooks()).reserve(attempt(1), micro(10), SIGN_AS_PAYER)


# --- a provider that cheats -----------------------------------------------------------------------


def test_a_price_above_the_quote_breaks_the_channel() -> None:
    consumer = payer()
    consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    charge = Charge(consumer.id, 1, micro(11), micro(11))
    with pytest.raises(ValidationFailed, match="agreed"):
        consumer.ack(receipt_for(attempt(1), charge))
    with pytest.raises(ValidationFailed, match="agreed"):
        consumer.reserve(attempt(2), micro(1), SIGN_AS_PAYER)


def test_a_charge_for_what_was_said_to_be_free_breaks_the_channel() -> None:
    consumer = payer()
    consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    consumer.release(attempt(1))  # the provider said that the model had failed
    consumer.reserve(attempt(2), micro(10), SIGN_AS_PAYER)
    lying = Charge(consumer.id, 2, micro(10), micro(20))
    with pytest.raises(ValidationFailed, match="asked for"):
        consumer.ack(receipt_for(attempt(2), lying))
    assert consumer.broken


def test_a_lie_in_a_sync_breaks_the_channel() -> None:
    consumer, cheat = payer(), provider()
    for n in range(1, 5):
        pay(consumer, cheat, attempt(n))
    for n in (5, 6):
        cheat.admit(attempt(n), micro(10), consumer.reserve(attempt(n), micro(10), SIGN_AS_PAYER), 1)
        consumer.lose(attempt(n))
    hidden = receipt_for(attempt(5), cheat.charge(attempt(5), micro(10)))
    asked = consumer.sync_request()
    with pytest.raises(ValidationFailed, match="asked for"):
        consumer.sync(asked, Sync(cheat.best, hidden))
    assert consumer.broken


def test_what_was_never_authorised_is_not_believed() -> None:
    consumer = payer(books=PayerBooks())
    boast = receipt_for(attempt(9), Charge(consumer.id, 1, micro(500), micro(500)))
    with pytest.raises(ValidationFailed, match="authorised"):
        consumer.sync(consumer.sync_request(), Sync(None, boast))
    assert not consumer.synced


def test_a_forged_best_voucher_is_not_believed() -> None:
    consumer = payer(books=PayerBooks())
    forged = sign_voucher(Voucher(consumer.id, micro(900)), CHAIN, SIGN_AS_STRANGER)
    with pytest.raises(ValidationFailed):
        consumer.sync(consumer.sync_request(), Sync(forged, None))


def test_running_attempts_beyond_what_was_authorised_are_not_believed() -> None:
    consumer = payer(books=PayerBooks())
    signed = sign_voucher(Voucher(consumer.id, micro(30)), CHAIN, SIGN_AS_PAYER)
    running = tuple((attempt(100 + n), micro(15)) for n in range(3))
    with pytest.raises(ValidationFailed, match="authorised"):
        consumer.sync(consumer.sync_request(), Sync(signed, None, (), running))
    assert not consumer.synced
    consumer.sync(consumer.sync_request(), Sync(signed, None, (), running[:2]))
    assert consumer.reserved == micro(30)
    assert consumer.lost == (attempt(100), attempt(101))


def test_receipts_of_other_channels_or_keys_are_refused() -> None:
    consumer = payer()
    consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    charge = Charge(consumer.id, 1, micro(10), micro(10))
    genuine = receipt_for(attempt(1), charge)
    stranger = replace(genuine.receipt, provider=consumer.config.payer)
    wrong = [
        receipt_for(attempt(1), replace(charge, channel=ChannelId(b"x" * 32))),
        receipt_for(attempt(2), charge),
        SignedReceipt(genuine.receipt, genuine.signature[:-1]),
        sign_receipt(genuine.receipt, CHAIN, SIGN_AS_STRANGER),
        sign_receipt(stranger, CHAIN, SIGN_AS_PAYER),
    ]
    for receipt in wrong:
        with pytest.raises(ValidationFailed):
            consumer.ack(receipt)
    assert not consumer.broken
    consumer.ack(genuine)
    consumer.ack(genuine)
    assert consumer.books.spent == micro(10)


# --- a payer that cheats, or asks too much --------------------------------------------------------


def test_without_a_voucher_nothing_is_served() -> None:
    with pytest.raises(InsufficientBalance):
        provider().admit(attempt(1), micro(1), None, 1)


def test_a_voucher_without_a_deposit_is_worth_nothing() -> None:
    seller = provider(deposit=5)
    voucher = payer().reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    with pytest.raises(InsufficientBalance):
        seller.admit(attempt(1), micro(10), voucher, 1)
    seller.deposit = Deposit(micro(15), withdrawing=micro(10))
    with pytest.raises(InsufficientBalance):
        seller.admit(attempt(2), micro(10), voucher, 1)
    seller.deposit = Deposit(micro(15))
    assert seller.admit(attempt(3), micro(10), voucher, 1) is None


def test_a_refusal_is_final_for_its_attempt() -> None:
    """Its payer has freed it, so a copy that comes later must not be charged."""
    seller = provider(deposit=5)
    voucher = payer().reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    with pytest.raises(InsufficientBalance):
        seller.admit(attempt(1), micro(10), voucher, 1)
    seller.deposit = Deposit(micro(15))
    with pytest.raises(Conflict, match="given up"):
        seller.admit(attempt(1), micro(10), voucher, 1)


def test_a_request_pays_once_however_often_it_is_sent() -> None:
    consumer, seller = payer(), provider()
    receipt = pay(consumer, seller, attempt(1))
    assert seller.admit(attempt(1), micro(10), None, 1) is receipt
    restarted = provider(books=ProviderBooks(seller.best, seller.last))
    assert restarted.admit(attempt(1), micro(10), None, 1, receipt) is receipt
    assert restarted.charged == micro(10)


def test_an_answer_is_not_given_before_it_is_written() -> None:
    consumer, seller = payer(), provider()
    voucher = consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    seller.admit(attempt(1), micro(10), voucher, 1)
    with pytest.raises(Conflict, match="under way"):
        seller.admit(attempt(1), micro(10), voucher, 1)
    seller.charge(attempt(1), micro(10))
    with pytest.raises(Conflict, match="under way"):
        seller.admit(attempt(1), micro(10), voucher, 1)
    assert seller.claimable == micro(0)
    seller.reload(ProviderBooks())
    with pytest.raises(Conflict, match="given up"):
        seller.admit(attempt(1), micro(10), voucher, 1)
    assert seller.charged == micro(0)


@pytest.mark.parametrize("price", [0, 11])
def test_charging_beyond_the_quote_or_nothing_is_a_bug(price: int) -> None:
    seller = provider()
    seller.admit(attempt(1), micro(10), payer().reserve(attempt(1), micro(10), SIGN_AS_PAYER), 1)
    with pytest.raises(RuntimeError):
        seller.charge(attempt(1), micro(price))
    with pytest.raises(RuntimeError):
        seller.charge(attempt(2), micro(1))
    assert seller.reserved == micro(10)


def test_a_provider_takes_a_bounded_number_at_once() -> None:
    seller = provider()
    voucher = sign_voucher(Voucher(seller.id, micro(1000)), CHAIN, SIGN_AS_PAYER)
    for n in range(MAX_ATTEMPTS):
        seller.admit(attempt(n + 1), micro(1), voucher, 1)
    with pytest.raises(NodeBusy):
        seller.admit(attempt(999), micro(1), voucher, 1)


@given(st.permutations(range(1, 9)))
def test_vouchers_may_arrive_in_any_order(order: list[int]) -> None:
    seller = provider()
    for n in order:
        voucher = sign_voucher(Voucher(seller.id, micro(10 * n)), CHAIN, SIGN_AS_PAYER)
        seller.sync(SyncRequest(voucher, None), {}, 1)
    assert seller.covered == micro(80)


def test_a_sync_is_bounded() -> None:
    many = tuple(attempt(n + 1) for n in range(MAX_ATTEMPTS + 1))
    with pytest.raises(ValidationFailed):
        SyncRequest(None, None, many)
    with pytest.raises(ValidationFailed):
        Sync(None, None, (), tuple((of, micro(1)) for of in many))


def test_a_bad_memory_changes_nothing() -> None:
    consumer, seller = payer(), provider()
    receipt = pay(consumer, seller, attempt(1))
    forged = sign_receipt(replace(receipt.receipt, issued_at=1), CHAIN, SIGN_AS_STRANGER)
    fresh = provider()
    with pytest.raises(ValidationFailed):
        fresh.sync(SyncRequest(consumer.books.signed, forged), {}, 1)
    assert fresh.best is None
    assert fresh.charged == micro(0)


# --- what comes late, twice or out of order ------------------------------------------------------


def test_two_requests_are_not_covered_by_the_voucher_for_one() -> None:
    seller = provider()
    voucher = sign_voucher(Voucher(seller.id, micro(15)), CHAIN, SIGN_AS_PAYER)
    seller.admit(attempt(1), micro(10), voucher, 1)
    with pytest.raises(InsufficientBalance):
        seller.admit(attempt(2), micro(10), voucher, 1)
    seller.release(attempt(1))
    assert seller.admit(attempt(3), micro(10), voucher, 1) is None


def test_what_was_said_to_cost_nothing_never_costs_anything() -> None:
    consumer, seller = payer(), provider()
    voucher = consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    consumer.lose(attempt(1))
    asked = consumer.sync_request()
    consumer.sync(asked, seller.sync(asked, {}, 1))
    assert consumer.reserved == micro(0)
    with pytest.raises(Conflict, match="given up"):  # the request arrives only now
        seller.admit(attempt(1), micro(10), voucher, 1)


def test_a_failed_attempt_that_comes_again_is_refused() -> None:
    consumer, seller = payer(), provider()
    voucher = consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    seller.admit(attempt(1), micro(10), voucher, 1)
    seller.release(attempt(1))
    with pytest.raises(Conflict, match="given up"):
        seller.admit(attempt(1), micro(10), voucher, 1)


def test_a_failed_commit_leaves_what_still_runs_covered() -> None:
    seller = provider()
    voucher = sign_voucher(Voucher(seller.id, micro(20)), CHAIN, SIGN_AS_PAYER)
    for n in (1, 2):
        seller.admit(attempt(n), micro(10), voucher, 1)
    seller.charge(attempt(1), micro(10))
    seller.reload(ProviderBooks())
    assert seller.best == voucher
    assert seller.charge(attempt(2), micro(10)).cumulative == micro(10)


def both_served(consumer: PayerChannel, seller: ProviderChannel) -> tuple[SignedReceipt, SignedReceipt]:
    """Two attempts at once, both charged, neither receipt heard."""
    consumer.books = replace(consumer.books, good=4)
    for n in (1, 2):
        seller.admit(attempt(n), micro(10), consumer.reserve(attempt(n), micro(10), SIGN_AS_PAYER), 1)
    one, two = (receipt_for(attempt(n), seller.charge(attempt(n), micro(7))) for n in (1, 2))
    return one, two


def test_receipts_may_be_heard_and_written_in_any_order() -> None:
    consumer, seller = payer(), provider()
    one, two = both_served(consumer, seller)
    seller.committed(two)
    seller.committed(one)
    assert seller.last is two
    consumer.ack(two)
    assert consumer.books.spent == micro(7)
    consumer.ack(one)
    assert consumer.books.spent == micro(14)
    assert consumer.books.last is two


def test_a_sync_counts_what_was_charged_and_keeps_what_still_runs() -> None:
    consumer, seller = payer(), provider()
    one, _ = both_served(consumer, seller)
    seller.committed(one)
    for n in (1, 2):
        consumer.lose(attempt(n))
    asked = consumer.sync_request()
    consumer.sync(asked, seller.sync(asked, {}, 1))
    assert consumer.books.spent == micro(7)
    assert (consumer.lost, consumer.reserved) == ((attempt(2),), micro(10))


def test_a_forgotten_attempt_is_held_until_its_end_is_known() -> None:
    before, seller = payer(), provider()
    seller.admit(attempt(1), micro(10), before.reserve(attempt(1), micro(10), SIGN_AS_PAYER), 1)
    after = payer(books=PayerBooks())
    asked = after.sync_request()
    after.sync(asked, seller.sync(asked, {}, 2))
    assert (after.lost, after.reserved) == ((attempt(1),), micro(10))
    with pytest.raises(NodeBusy):
        after.reserve(attempt(2), micro(10), SIGN_AS_PAYER)
    seller.committed(receipt_for(attempt(1), seller.charge(attempt(1), micro(7))))
    asked = after.sync_request()
    after.sync(asked, seller.sync(asked, {}, 2))
    assert (after.books.spent, after.reserved) == (micro(7), micro(0))
    pay(after, seller, attempt(2))


def test_what_a_payer_has_forgotten_is_not_served_to_it_any_more() -> None:
    """The request of its earlier life arrives after the sync of its next."""
    before, after, seller = payer(), payer(books=PayerBooks()), provider()
    voucher = before.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    asked = after.sync_request()
    after.sync(asked, seller.sync(asked, {}, 2))
    with pytest.raises(Conflict, match="newer session"):
        seller.admit(attempt(1), micro(10), voucher, 1)
    with pytest.raises(Conflict, match="newer session"):
        seller.sync(asked, {}, 1)
    pay(after, seller, attempt(2))


def test_a_sync_does_not_touch_what_was_sent_and_heard_meanwhile() -> None:
    consumer, seller = payer(), provider()
    seller.admit(attempt(1), micro(10), consumer.reserve(attempt(1), micro(10), SIGN_AS_PAYER), 1)
    asked = consumer.sync_request()
    told = seller.sync(asked, {}, 1)  # attempt 1 is running
    consumer.ack(receipt_for(attempt(1), seller.charge(attempt(1), micro(10))))
    consumer.reserve(attempt(2), micro(10), SIGN_AS_PAYER)
    consumer.sync(asked, told)
    assert (consumer.books.spent, consumer.reserved, consumer.lost) == (micro(10), micro(10), ())


# --- lost memory ----------------------------------------------------------------------------------


def test_a_provider_that_lost_everything_recovers_its_charges_from_its_payer() -> None:
    consumer, seller = payer(), provider()
    for n in range(1, 4):
        pay(consumer, seller, attempt(n))
    newborn = provider()
    asked = consumer.sync_request()
    consumer.sync(asked, newborn.sync(asked, {}, 1))
    assert newborn.charged == newborn.claimable == micro(30)
    pay(consumer, newborn, attempt(4))
    assert newborn.charged == consumer.books.spent == micro(40)


def test_a_payer_that_lost_everything_recovers_what_it_spent_from_its_provider() -> None:
    consumer, seller = payer(), provider()
    for n in range(1, 4):
        pay(consumer, seller, attempt(n))
    newborn = payer(books=PayerBooks())
    asked = newborn.sync_request()
    newborn.sync(asked, seller.sync(asked, {}, 1))
    assert newborn.books.spent == micro(30)
    pay(newborn, seller, attempt(4))


def test_a_receipt_that_an_adopted_sum_has_in_it_is_not_counted_again() -> None:
    consumer, seller = payer(), provider()
    pay(consumer, seller, attempt(1))
    newborn = payer(books=PayerBooks())
    asked = newborn.sync_request()
    newborn.sync(asked, seller.sync(asked, {}, 1))
    voucher = newborn.reserve(attempt(1), micro(10), SIGN_AS_PAYER)
    stored = seller.admit(attempt(1), micro(10), voucher, 1)
    assert stored is not None
    newborn.ack(stored)
    assert (newborn.books.spent, newborn.reserved, seller.charged) == (micro(10), micro(0), micro(10))
    pay(newborn, seller, attempt(2))
    assert newborn.books.spent == seller.charged == micro(20)


def test_what_was_claimed_counts_as_charged() -> None:
    seller = ProviderChannel(payer().config, CHAIN, Deposit(micro(100), claimed=micro(60)))
    assert seller.charged == micro(60)
    assert seller.claimable == micro(0)


def test_claims_are_for_what_is_written() -> None:
    consumer, seller = payer(), provider()
    pay(consumer, seller, attempt(1))
    assert seller.claimable == micro(10)
    seller.deposit = Deposit(micro(1000), claimed=micro(10))
    assert seller.claimable == micro(0)


def test_signatures_of_this_module_are_the_providers() -> None:
    charge = Charge(payer().id, 1, micro(1), micro(1))
    receipt = receipt_for(attempt(1), charge)
    assert receipt == sign_receipt(receipt.receipt, CHAIN, SIGN_AS_PROVIDER)
