"""A payer, an honest provider and a wire that reorders, repeats and loses, in every order of steps.

Either side is killed at any moment and starts from what its Journal has; commits fail; strangers throw
in forgeries.  Never a double charge, never one without a voucher, never more at risk than the window.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmesh.core.amount import Amount
from llmesh.core.channel import ProviderBooks, Sync, SyncRequest
from llmesh.core.ids import AttemptId
from llmesh.core.payer import window
from llmesh.core.receipt import SignedReceipt, sign_receipt
from llmesh.core.voucher import SignedVoucher, Voucher, sign_voucher
from llmesh.errors import Conflict, InsufficientBalance, NodeBusy, ValidationFailed

from .paying import (
    CHAIN,
    OTHER_CHAIN,
    SIGN_AS_PAYER,
    SIGN_AS_PROVIDER,
    SIGN_AS_STRANGER,
    attempt,
    payer,
    provider,
    receipt_for,
)

PRICE = 10
BUSINESS = ["ask", "ask", "serve", "serve", "finish", "finish", "hear", "hear", "fail"]
TROUBLE = [
    "kill_payer", "kill_provider", "break_the_link", "write_down", "ask_for_sync", "tell_sync", "hear_sync",
    "sync_at_once",
]  # fmt: skip

picks = st.integers(0, 1 << 16)
mostly = st.integers(0, 9).map(lambda n: n > 0)


class Channel(RuleBasedStateMachine):
    @initialize(deposit=st.sampled_from([40, 100_000]), good=st.sampled_from([0, 4, 40]))
    def open(self, deposit: int, good: int) -> None:
        self.deposit, self.made, self.session, self.widest = deposit, 0, 1, 1
        self.payer, self.provider = payer(deposit), provider(deposit)
        self.payer.books = replace(self.payer.books, good=good)
        self.kept = self.payer.books  # the payer's Journal
        self.best: SignedVoucher | None = None  # the provider's Journal, this and the next
        self.receipts: dict[AttemptId, SignedReceipt] = {}
        # On the wire, each by the session it was sent by.
        self.requests: list[tuple[int, AttemptId, Amount, SignedVoucher]] = []
        self.answers: list[SignedReceipt | AttemptId] = []
        self.running: dict[AttemptId, tuple[int, Amount]] = {}
        self.asked: list[tuple[int, SyncRequest]] = []
        self.told: list[tuple[SyncRequest, Sync]] = []

    @rule(steps=st.lists(st.tuples(st.sampled_from(BUSINESS), picks, mostly), min_size=20, max_size=60))
    def business(self, steps: list[tuple[str, int, bool]]) -> None:
        for step, pick, flag in steps:
            getattr(self, step)(pick, flag)
            self.every_charge_is_covered()
            self.no_more_is_at_risk_than_the_window()

    @rule(kinds=st.lists(st.sampled_from(TROUBLE), min_size=1, max_size=4))
    def trouble(self, kinds: list[str]) -> None:
        for kind in kinds:
            getattr(self, kind)()

    # --- the payer --------------------------------------------------------------------------------

    def ask(self, pick: int, _: bool) -> None:
        if not self.payer.synced:
            self.sync_at_once()
        quote = 1 + pick % PRICE
        self.made += 1
        self.widest = max(self.widest, window(self.payer.books.good))
        try:
            voucher = self.payer.reserve(attempt(self.made), Amount(quote), SIGN_AS_PAYER)
        except NodeBusy:
            assert self.payer.room == 0
        except InsufficientBalance:
            assert self.payer.books.spent.micro + self.payer.reserved.micro + quote > self.deposit
        else:
            self.requests.append((self.session, attempt(self.made), Amount(quote), voucher))

    def write_down(self) -> None:
        self.kept = self.payer.books

    def kill_payer(self) -> None:
        self.payer = payer(self.deposit, self.kept)
        self.break_the_link()

    def break_the_link(self) -> None:
        """What was sent may still arrive; no answer to it will."""
        for lost in list(self.payer._in_flight):
            self.payer.lose(lost)
        self.session += 1
        self.answers.clear()
        self.told.clear()

    def ask_for_sync(self) -> None:
        self.asked.append((self.session, self.payer.sync_request()))

    def sync_at_once(self) -> None:
        asked = self.payer.sync_request()
        self.payer.sync(asked, self.provider.sync(asked, self.receipts, self.session))

    def hear_sync(self) -> None:
        if self.told:
            self.payer.sync(*self.told.pop(self.made % len(self.told)))

    def hear(self, pick: int, once: bool) -> None:
        if not self.answers:
            return
        position = pick % len(self.answers)
        answer = self.answers.pop(position) if once else self.answers[position]
        if isinstance(answer, SignedReceipt):
            before = self.payer.books.spent
            self.payer.ack(answer)
            assert self.payer.books.spent.micro >= before.micro
        else:
            self.payer.release(answer)

    # --- the provider -----------------------------------------------------------------------------

    def serve(self, pick: int, once: bool) -> None:
        if not self.requests:
            return
        position = pick % len(self.requests)
        session, request, quote, voucher = self.requests.pop(position) if once else self.requests[position]
        try:
            known = self.provider.admit(request, quote, voucher, session, self.receipts.get(request))
        except Conflict:
            return
        except (InsufficientBalance, NodeBusy):
            self.answer(session, request)
            return
        if known is not None:
            assert known == self.receipts[request]
            self.answer(session, known)
        else:
            self.running[request] = session, quote

    def finish(self, pick: int, disk_works: bool) -> None:
        """A group of charges in one commit, which succeeds or fails as a whole."""
        if not self.running:
            return
        price, group = 1 + pick % PRICE, 1 + pick % 3
        made = []
        for done in sorted(self.running)[pick % len(self.running) :][:group]:
            session, quote = self.running.pop(done)
            charge = self.provider.charge(done, Amount(min(price, quote.micro)))
            made.append((session, receipt_for(done, charge)))
        if not disk_works:
            self.provider.reload(self.written())
            for session, receipt in made:
                self.answer(session, receipt.attempt)
            return
        for _, receipt in made:
            assert receipt.attempt not in self.receipts, "charged twice"
            self.receipts[receipt.attempt] = receipt
        self.best = self.provider.best
        for session, receipt in reversed(made):  # the tasks that wait wake in any order
            self.provider.committed(receipt)
            self.answer(session, receipt)

    def fail(self, pick: int, _: bool) -> None:
        if not self.running:
            return
        failed = sorted(self.running)[pick % len(self.running)]
        session, _quote = self.running.pop(failed)
        self.provider.release(failed)
        self.answer(session, failed)

    def kill_provider(self) -> None:
        self.provider = provider(self.deposit, self.written())
        self.running.clear()
        self.requests.clear()  # no connection outlives the process
        self.asked.clear()
        self.break_the_link()

    def tell_sync(self) -> None:
        if not self.asked:
            return
        session, asked = self.asked.pop(self.made % len(self.asked))
        try:
            told = self.provider.sync(asked, self.receipts, session)
        except Conflict:
            assert session < self.session
            return
        if session == self.session:
            self.told.append((asked, told))

    def answer(self, session: int, answer: SignedReceipt | AttemptId) -> None:
        """It goes back by the session that was asked by, if that still stands."""
        if session == self.session:
            self.answers.append(answer)

    def written(self) -> ProviderBooks:
        last = max(self.receipts.values(), key=lambda r: r.charge.sequence, default=None)
        return ProviderBooks(self.best, last)

    # --- strangers --------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["key", "chain", "raised"]), ceiling=st.integers(1, 1 << 127))
    def forge_a_voucher(self, kind: str, ceiling: int) -> None:
        before = self.provider.best, self.provider.charged, self.provider.reserved
        voucher = Voucher(self.provider.id, Amount(ceiling + (1 << 100)))
        forged = {
            "key": sign_voucher(voucher, CHAIN, SIGN_AS_STRANGER),
            "chain": sign_voucher(voucher, OTHER_CHAIN, SIGN_AS_PAYER),
            "raised": SignedVoucher(voucher, self.best.signature if self.best else bytes(65)),
        }[kind]
        with pytest.raises(ValidationFailed):
            self.provider.admit(attempt(1 << 60), Amount(1), forged, self.session)
        assert before == (self.provider.best, self.provider.charged, self.provider.reserved)

    @precondition(lambda self: self.receipts)
    @rule(pick=picks, kind=st.sampled_from(["key", "chain", "price"]))
    def forge_a_receipt(self, pick: int, kind: str) -> None:
        genuine = list(self.receipts.values())[pick % len(self.receipts)]
        before = self.payer.books, self.payer.reserved
        dearer = replace(genuine.charge, price=Amount(0))
        forged = {
            "key": sign_receipt(genuine.receipt, CHAIN, SIGN_AS_STRANGER),
            "chain": sign_receipt(genuine.receipt, OTHER_CHAIN, SIGN_AS_PROVIDER),
            "price": SignedReceipt(replace(genuine.receipt, charge=dearer), genuine.signature),
        }[kind]
        with pytest.raises(ValidationFailed):
            self.payer.ack(forged)
        asked = self.payer.sync_request()
        with pytest.raises(ValidationFailed):
            self.payer.sync(asked, Sync(self.best, forged))
        assert before == (self.payer.books, self.payer.reserved)

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def every_charge_is_made_once_and_adds_up(self) -> None:
        prices = sum(receipt.charge.price.micro for receipt in self.receipts.values())
        assert prices == self.provider.charged.micro

    @invariant()
    def every_charge_is_covered(self) -> None:
        ceiling = self.best.ceiling.micro if self.best else 0
        assert self.provider.charged.micro <= min(ceiling, self.deposit)
        assert self.provider.charged.micro + self.provider.reserved.micro <= self.provider.covered.micro or (
            not self.provider.reserved
        )

    @invariant()
    def no_more_is_at_risk_than_the_window(self) -> None:
        signed = self.payer.books.signed.ceiling.micro if self.payer.books.signed else 0
        assert signed - self.provider.charged.micro <= self.widest * PRICE
        if self.payer.synced:
            assert self.payer.exposure.micro <= self.widest * PRICE

    @invariant()
    def the_payer_counts_nothing_that_was_not_charged(self) -> None:
        assert self.payer.books.spent <= self.provider.charged
        assert not self.payer.broken, "an honest provider is never accused"

    def teardown(self) -> None:
        """Once all is quiet, two syncs bring both sides to the same sum, and business goes on."""
        if not hasattr(self, "payer"):
            return
        self.requests.clear()
        self.break_the_link()
        for done in self.running:
            self.provider.release(done)
        for _ in range(3):
            asked = self.payer.sync_request()
            self.payer.sync(asked, self.provider.sync(asked, self.receipts, self.session))
        assert self.payer.books.spent == self.provider.charged
        assert not self.payer.reserved
        if self.payer.books.spent.micro < self.deposit:
            voucher = self.payer.reserve(attempt(1 << 70), Amount(1), SIGN_AS_PAYER)
            assert self.provider.admit(attempt(1 << 70), Amount(1), voucher, self.session) is None


Channel.TestCase.settings = settings(
    max_examples=100, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChannel = Channel.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_long_lives(seed: int) -> None:
    """The same steps by plain chance, which gets much further than a search for the smallest fault."""
    rng, served = Random(seed), 0
    for _ in range(10):
        channel = Channel()
        Channel.open(channel, deposit=rng.choice((40, 100_000)), good=rng.choice((0, 4, 40)))
        for _ in range(120):
            if rng.random() < 0.85:
                getattr(channel, rng.choice(BUSINESS))(rng.getrandbits(16), rng.random() < 0.9)
            else:
                getattr(channel, rng.choice(TROUBLE))()
            channel.every_charge_is_made_once_and_adds_up()
            channel.every_charge_is_covered()
            channel.no_more_is_at_risk_than_the_window()
            channel.the_payer_counts_nothing_that_was_not_charged()
        channel.teardown()
        served += len(channel.receipts)
    assert served > 20
