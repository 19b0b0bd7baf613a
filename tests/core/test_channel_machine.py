"""A payer, an honest provider and a wire that reorders, repeats and loses, in every order of steps.

Either side is killed at any moment and starts from what its Journal has; commits fail; strangers throw
in forgeries.  Never a double charge, never one without a voucher, never more at risk than the window.
"""

from __future__ import annotations

from dataclasses import replace

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
from llmesh.errors import Conflict, InsufficientBalance, MeshError, NodeBusy, ValidationFailed

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
picks = st.integers(0, 1 << 16)


class Channel(RuleBasedStateMachine):
    @initialize(deposit=st.sampled_from([25, 400, 100_000]), good=st.sampled_from([0, 4, 40, 256]))
    def open(self, deposit: int, good: int) -> None:
        self.deposit, self.made, self.born, self.widest = deposit, 0, 0, 1
        self.payer, self.provider = payer(deposit), provider(deposit)
        self.payer.books = replace(self.payer.books, good=good)
        self.kept = self.payer.books  # the payer's Journal
        self.best: SignedVoucher | None = None  # the provider's Journal, this and the next
        self.receipts: dict[AttemptId, SignedReceipt] = {}
        self.requests: list[tuple[AttemptId, Amount, SignedVoucher]] = []  # on the wire
        self.answers: list[SignedReceipt | AttemptId] = []
        self.running: dict[AttemptId, Amount] = {}
        self.asked: list[SyncRequest] = []
        self.told: list[tuple[SyncRequest, Sync]] = []

    # --- the payer --------------------------------------------------------------------------------

    @rule(quote=st.integers(1, PRICE))
    def ask(self, quote: int) -> None:
        if not self.payer.synced:
            return
        self.made += 1
        self.widest = max(self.widest, window(self.payer.books.good))
        try:
            voucher = self.payer.reserve(attempt(self.made), Amount(quote), SIGN_AS_PAYER)
        except NodeBusy:
            assert self.payer.room == 0
        except InsufficientBalance:
            assert self.payer.books.spent.micro + self.payer.reserved.micro + quote > self.deposit
        else:
            self.requests.append((attempt(self.made), Amount(quote), voucher))

    @rule()
    def write_down(self) -> None:
        self.kept = self.payer.books

    @rule()
    def kill_payer(self) -> None:
        self.payer, self.born = payer(self.deposit, self.kept), self.made
        self.answers.clear()
        self.asked.clear()
        self.told.clear()

    @rule()
    def break_the_link(self) -> None:
        """What was sent may still arrive; no answer to it will."""
        for lost in list(self.payer._in_flight):
            self.payer.lose(lost)
        self.answers.clear()
        self.asked.clear()
        self.told.clear()

    @rule()
    def ask_for_sync(self) -> None:
        self.asked.append(self.payer.sync_request())

    @precondition(lambda self: self.told)
    @rule(pick=picks)
    def hear_sync(self, pick: int) -> None:
        self.payer.sync(*self.told.pop(pick % len(self.told)))

    @precondition(lambda self: self.answers)
    @rule(pick=picks, keep=st.booleans())
    def hear(self, pick: int, keep: bool) -> None:
        position = pick % len(self.answers)
        answer = self.answers[position] if keep else self.answers.pop(position)
        if isinstance(answer, SignedReceipt):
            before = self.payer.books.spent
            self.payer.ack(answer)
            assert self.payer.books.spent.micro >= before.micro
        else:
            self.payer.release(answer)

    # --- the provider -----------------------------------------------------------------------------

    @precondition(lambda self: self.requests)
    @rule(pick=picks, keep=st.booleans())
    def serve(self, pick: int, keep: bool) -> None:
        position = pick % len(self.requests)
        request, quote, voucher = self.requests[position] if keep else self.requests.pop(position)
        try:
            known = self.provider.admit(request, quote, voucher, self.receipts.get(request))
        except Conflict:
            return
        except (InsufficientBalance, NodeBusy):
            if request not in self.running:
                self.answer(request)
            return
        if known is not None:
            assert known == self.receipts[request]
            self.answer(known)
        else:
            self.running[request] = quote

    @precondition(lambda self: self.running)
    @rule(pick=picks, price=st.integers(1, PRICE), group=st.integers(1, 3), disk_works=st.booleans())
    def finish(self, pick: int, price: int, group: int, disk_works: bool) -> None:
        """A group of charges in one commit, which succeeds or fails as a whole."""
        made = []
        for done in sorted(self.running)[pick % len(self.running) :][:group]:
            quote = self.running.pop(done)
            made.append(receipt_for(done, self.provider.charge(done, Amount(min(price, quote.micro)))))
        if not disk_works:
            self.provider.reload(self.written())
            for receipt in made:
                self.answer(receipt.attempt)
            return
        for receipt in made:
            assert receipt.attempt not in self.receipts, "charged twice"
            self.receipts[receipt.attempt] = receipt
        self.best = self.provider.best
        for receipt in reversed(made):  # the tasks that wait wake in any order
            self.provider.committed(receipt)
            self.answer(receipt)

    @precondition(lambda self: self.running)
    @rule(pick=picks)
    def fail(self, pick: int) -> None:
        failed = sorted(self.running)[pick % len(self.running)]
        del self.running[failed]
        self.provider.release(failed)
        self.answer(failed)

    @rule()
    def kill_provider(self) -> None:
        self.provider = provider(self.deposit, self.written())
        self.running.clear()
        self.requests.clear()  # no connection outlives the process
        self.break_the_link()

    @precondition(lambda self: self.asked)
    @rule(pick=picks)
    def tell_sync(self, pick: int) -> None:
        asked = self.asked.pop(pick % len(self.asked))
        self.told.append((asked, self.provider.sync(asked, self.receipts)))

    def answer(self, answer: SignedReceipt | AttemptId) -> None:
        """Nobody listens any more for answers to a payer that was killed."""
        about = answer.attempt if isinstance(answer, SignedReceipt) else answer
        if int(about.request, 16) > self.born:
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
        with pytest.raises(MeshError) as refused:
            self.provider.admit(attempt(1 << 60), Amount(1), forged)
        assert isinstance(refused.value, ValidationFailed | NodeBusy)
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
        for done in list(self.running):
            self.provider.release(done)
        for _ in range(3):
            asked = self.payer.sync_request()
            self.payer.sync(asked, self.provider.sync(asked, self.receipts))
        assert self.payer.books.spent == self.provider.charged
        assert not self.payer.reserved
        if self.payer.books.spent.micro < self.deposit:
            voucher = self.payer.reserve(attempt(1 << 70), Amount(1), SIGN_AS_PAYER)
            assert self.provider.admit(attempt(1 << 70), Amount(1), voucher) is None


Channel.TestCase.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChannel = Channel.TestCase
