"""Till: a provider's channels, and the receipt that ends every answer.

What an attempt costs is durable, with the voucher that covers it and the receipt, before the end of the
answer leaves.  The rules are core.channel; this is when they are asked, and what is kept.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.binding import check_binding
from llmesh.core.channel import NOTHING, ProviderBooks, Sync
from llmesh.core.credentials import Credentials, class_of
from llmesh.core.digest import values_digest
from llmesh.core.encoding import Value
from llmesh.core.ids import PeerId
from llmesh.core.inference import Attempt, Chunk, Consumer, output_of
from llmesh.core.payment import Confirmed, Payment, Reconcile
from llmesh.core.pricing import cut_fee
from llmesh.core.receipt import NO_CHARGE, NO_OFFER, Charge, Receipt, SignedReceipt, Work, sign_receipt
from llmesh.core.terms import SignedTerms
from llmesh.core.voucher import channel_id
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    MeshError,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    RequestTimeout,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.journal.channels import ChangeSalt, RecordProviderBooks
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.journal.outputs import pack_output, read_output
from llmesh.journal.receipts import ForgetOutputs, find_receipts, oldest_output
from llmesh.ledger.ledger import Ledger
from llmesh.mesh.accounts import PATIENCE, Account, Accounts
from llmesh.mesh.charges import Charges

__all__ = ["Bill", "Till"]

log = logging.getLogger(__name__)

OUTPUT_AGE = 3600.0
"""Seconds for which an output is kept for a retry; its receipt stays."""
TIDYING = 60.0
"""Seconds between two looks for older ones."""

_CUT = (trio.Cancelled, RequestTimeout, NetworkError)
"""How a block ends that its consumer has left, or given too little time."""


@dataclass(slots=True, eq=False)
class Bill:
    """What becomes of one attempt: its provider adds chunks, says which were taken, and settles.

    `stored` is the receipt of an attempt that was charged before, `output` what it gave if that is kept.
    """

    attempt: Attempt
    offer: Offer
    fee: Amount
    account: Account | None = None
    stored: SignedReceipt | None = None
    output: Mapping[str, Value] | None = None
    chunks: list[Chunk] = field(default_factory=list)
    taken: int = 0
    settled: bool = False

    @property
    def paid(self) -> Payment | None:
        """How it is paid, if anything is."""
        return self.attempt.payment if self.account else None


class Till:
    """`credentials` are this node's, `clock` gives seconds since 1970; `run` is a task beside.

    Once `close` is called nothing is charged for what a consumer has not got whole: this node is leaving.
    """

    def __init__(
        self, credentials: Credentials, journal: Journal, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self.credentials = credentials
        self._journal = journal
        self._clock = clock
        self._accounts = Accounts(credentials.chain, journal, ledger)
        self._charges = Charges(journal)
        self._closed = False
        self._next_salt = secrets.token_bytes(32)

    def close(self) -> None:
        """Charge no more for what is cut."""
        self._closed = True

    @asynccontextmanager
    async def billing(
        self, attempt: Attempt, consumer: Consumer, offer: Offer, fee: Amount
    ) -> AsyncGenerator[Bill]:
        """Hold what an attempt may cost while the block serves it.

        Raises InsufficientBalance where nothing or too little covers the fee, ModelNotFound for terms
        that are not those of the offer, ValidationFailed for a forged voucher, Conflict and NodeBusy as
        `ProviderChannel.admit`.  A block that its consumer has cut, by leaving or by its time limit, is
        charged the share that was taken; one that fails otherwise is charged nothing.
        """
        bill = Bill(attempt, offer, fee)
        if fee:
            await self._admit(bill, consumer)
        try:
            yield bill
        except _CUT:
            await self._cut(bill)
            raise
        finally:
            if bill.account is not None:
                bill.account.channel.release(attempt.id)

    def confirm(self, offer: Offer, digest: bytes) -> Confirmed:
        """Stand by the terms of an offer.  Raises ModelNotFound for terms that are not its own."""
        own = self.credentials
        return Confirmed(own.binding(self._clock()), self._terms(offer, digest), own.salt)

    async def settle(self, bill: Bill) -> SignedReceipt:
        """Charge for the whole answer; the receipt, once it is durable.

        Raises TransactionFailed where it cannot be made so: then nothing is charged and no answer may
        leave.  Raises ModelFailed for an answer that cannot be told (NaN).  No cancel comes between.
        """
        bill.settled = True
        return await self._charge(bill, bill.fee if bill.chunks else NOTHING, bill.chunks)

    async def reconcile(self, asked: Reconcile, consumer: Consumer) -> Sync:
        """Bring both ends of a channel to the same; a channel with a deposit becomes known by it.

        Raises ValidationFailed for what is forged, another's or not of this ledger, InsufficientBalance
        where the ledger shows no deposit, Conflict by an old session, TransactionFailed.
        """
        self._check_config(asked, consumer.peer_id)
        mark = channel_id(asked.config, self.credentials.chain)
        account = await self._accounts.find(mark)
        if account is None:
            account = await self._accounts.open(asked.config, mark, consumer.peer_id)
        account.peer = consumer.peer_id
        await self._accounts.see_deposit(account, asked.deposit)
        channel, lost = account.channel, asked.request.lost
        stored = await self._journal.read(find_receipts, Side.PROVIDER, consumer.peer_id, lost, mark)
        before = channel.best, channel.last
        answer = channel.sync(asked.request, stored, consumer.session)
        forgot = channel.last != before[1] and asked.config.salt == self.credentials.salt
        if (channel.best, channel.last) != before:
            books = RecordProviderBooks(mark, ProviderBooks(channel.best, channel.last))
            # Together: once the books are there, the same reminder shows nothing any more.
            await self._journal.commit(books, *((ChangeSalt(self._next_salt),) if forgot else ()))
        if forgot:
            self._change_channels()
        return answer

    def _change_channels(self) -> None:
        """A payer has a receipt of this node's that its journal should have, and more may be missing.

        On the channels of until now it might sign something else for what it signed already.
        """
        log.error(
            "This node has signed receipts that its journal does not have: the file is an old copy. It is"
            " paid by other channels from now on. Put journals back by `llmesh restore` only."
        )
        self.credentials = replace(self.credentials, salt=self._next_salt)

    async def run(self) -> None:
        """Follow the ledger, and forget outputs that no retry will ask for any more, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accounts.watch)
            nursery.start_soon(self._forget)

    async def _forget(self) -> None:
        while True:
            try:
                before = self._clock() - OUTPUT_AGE
                while (oldest := await self._journal.read(oldest_output)) is not None and oldest < before:
                    await self._journal.commit(ForgetOutputs(before))
            except TransactionFailed as error:
                log.warning("old outputs are not forgotten yet: %s", error.message)
            await trio.sleep(TIDYING)

    # --- admission

    async def _admit(self, bill: Bill, consumer: Consumer) -> None:
        attempt, payment = bill.attempt, bill.attempt.payment
        if payment is None:
            raise InsufficientBalance(
                f"{bill.offer.card.name} costs {bill.fee} MESH here; members of this node's swarm pay by a"
                " channel."
            )
        self._terms(bill.offer, payment.offer)
        account = await self._accounts.find(payment.channel)
        if account is None or account.peer != consumer.peer_id:
            raise InsufficientBalance("This node knows no such channel of yours; reconcile it first.")
        if account.channel.config.salt != self.credentials.salt:
            raise Conflict("This node was restored from a backup and is paid by another channel now.")
        mark, peer = payment.channel, consumer.peer_id
        row = await self._charges.find(peer, mark, attempt.id)
        voucher, stored = payment.voucher, row.signed if row else None
        bill.stored = account.channel.admit(attempt.id, bill.fee, voucher, consumer.session, stored)
        bill.account = account
        if bill.stored is not None:
            _refuse_other(bill.stored, attempt, payment)
            bill.output = read_output(row.output) if row and row.output is not None else None

    def _terms(self, offer: Offer, digest: bytes) -> SignedTerms:
        terms = self.credentials.known_terms(offer, digest, self._clock())
        if terms is None:
            raise ModelNotFound(f"{offer.card.name} is offered here on other terms by now.")
        return terms

    def _check_config(self, asked: Reconcile, peer: PeerId) -> None:
        own, config = self.credentials, asked.config
        if (config.receiver, config.receiver_authorizer) != (own.signer.address, own.signer.address):
            raise ValidationFailed("The channel does not pay this node.")
        if config.token != own.chain.contract:
            raise ValidationFailed("The channel is not of this node's swarm.")
        check_binding(asked.binding, self._clock())
        binding = asked.binding.binding
        if (binding.node, binding.account, binding.chain) != (peer, config.authorizer, own.chain):
            raise ValidationFailed("The channel is not of the peer that speaks of it.")

    # --- charging

    async def _cut(self, bill: Bill) -> None:
        """Charge for what was taken of an answer whose consumer has left."""
        taken = bill.chunks[: bill.taken]
        if bill.settled or bill.stored or bill.account is None or not taken or self._closed:
            return
        price = cut_fee(bill.fee, bill.attempt.input, taken)
        try:
            await self._charge(bill, price, taken)
        except MeshError as error:
            log.warning("an answer that was cut short is not charged: %s", error.message)

    async def _charge(self, bill: Bill, price: Amount, chunks: list[Chunk]) -> SignedReceipt:
        work, kept = _done(bill, output_of(chunks))
        account = bill.account
        if account is None or not price:
            return self._sign(bill, work, NO_CHARGE)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            if account.repairing.locked():
                async with account.repairing:
                    pass
            if not account.damaged:
                return await self._charge_durably(account, bill, price, (work, kept))
        raise TransactionFailed("The journal of the provider does not take the charge.")

    async def _charge_durably(
        self, account: Account, bill: Bill, price: Amount, done: tuple[Work, bytes | None]
    ) -> SignedReceipt:
        channel, repairs, best = account.channel, account.repairs, account.channel.best
        if best is None:
            raise RuntimeError("What was admitted is covered by a voucher.")
        receipt = self._sign(bill, done[0], channel.charge(bill.attempt.id, price))
        try:
            # From the charge to the queue of the writer there is no checkpoint: charges keep their order.
            await self._journal.commit(RecordCharge(account.peer, receipt, best, done[1]))
        except BaseException as error:
            await self._accounts.repair(account, repairs)
            if isinstance(error, MeshError):
                raise TransactionFailed(f"The provider could not keep its charge: {error.message}") from error
            raise
        self._charges.add(bill.attempt.id)
        channel.committed(receipt)
        return receipt

    def _sign(self, bill: Bill, work: Work, charge: Charge) -> SignedReceipt:
        own = self.credentials
        offer = bill.paid.offer if bill.paid else NO_OFFER
        receipt = Receipt(own.signer.address, bill.attempt.id, offer, work, charge, int(self._clock()))
        return sign_receipt(receipt, own.chain, own.signer.sign)


def _refuse_other(stored: SignedReceipt, attempt: Attempt, payment: Payment) -> None:
    """Raise Conflict where an attempt was charged for something else than it asks for now."""
    work = stored.receipt.work
    asked = attempt.model_id, values_digest(attempt.input), payment.channel
    if (work.model, work.input_digest, stored.charge.channel) != asked:
        raise Conflict(f"Attempt {attempt.number} at this request was charged already, for another input.")


def _done(bill: Bill, output: Mapping[str, Value]) -> tuple[Work, bytes | None]:
    """What was done, and the output as it is kept for a retry of what was paid for.

    What was cut short is not kept: a retry would take it for the whole answer.
    """
    try:
        digest = values_digest(output)
        kept = pack_output(output) if bill.account and bill.settled else None
    except ValidationFailed as error:
        raise ModelFailed(f"The model's answer is no answer: {error.message}") from None
    attempt = bill.attempt
    work = Work(attempt.model_id, class_of(bill.offer), values_digest(attempt.input), digest)
    return work, kept
