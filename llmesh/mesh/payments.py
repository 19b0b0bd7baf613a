"""Payments: this node as a payer; what each attempt holds, and what becomes of it.

Before an attempt is sent its quote is held in its caller's purse and on the provider's tab.  A good
receipt spends it, a refusal frees it; where nobody knows whether it was charged it stays held until the
provider has said so.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from llmesh.core.amount import Amount
from llmesh.core.credentials import Payee
from llmesh.core.ids import AttemptId, PeerId, RequestId
from llmesh.core.payment import Payment
from llmesh.core.ranking import Candidate
from llmesh.core.receipt import SignedReceipt, check_receipt
from llmesh.core.voucher import SignedVoucher
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    MeshError,
    NetworkError,
    NodeBusy,
    RequestTimeout,
    TransactionFailed,
)
from llmesh.journal.columns import Side
from llmesh.journal.purse import DurablePurse
from llmesh.journal.receipts import ReceiptRow, StoreReceipt
from llmesh.mesh.tabs import Tab, Tabs
from llmesh.net.session import Session

__all__ = ["Payments", "Purchase", "open_payments", "out_of_step"]

log = logging.getLogger(__name__)

SOON, LONGEST = 0.1, 30.0
"""Seconds until a provider is asked about an attempt of unknown outcome; each wait is twice the last."""
REMEMBERED = 4096
"""Requests whose attempts are counted on."""
PATIENCE = 5.0
"""Seconds to find out whom a request that comes again was paid to, or for a word before a deposit."""
LOW_AT_ONCE = 64
"""Deposits that wait to be filled up; further ones are left until they are asked from again."""
FLUSH = 1.0
"""Seconds that the last writing may take."""

_UNCERTAIN = (RequestTimeout, NetworkError, TransactionFailed)
"""What a provider may say after it has charged, or charge after it has said."""


@dataclass(slots=True, eq=False)
class Purchase:
    """One attempt that is paid for.  Set `sent` before it leaves, and `settle` it by its receipt."""

    attempt: AttemptId
    quote: Amount
    tab: Tab
    session: Session
    payment: Payment
    purse: DurablePurse | None
    sent: bool = False
    settled: bool = False


class Payments:
    """Pays what the router buys; `run` is a task to run beside."""

    def __init__(self, tabs: Tabs) -> None:
        self.tabs = tabs
        self._low, self._fillable = trio.open_memory_channel[tuple[Candidate, Payee]](LOW_AT_ONCE)
        self._numbers: OrderedDict[RequestId, int] = OrderedDict()

    def number(self, request: RequestId) -> int:
        """The number of the next attempt at a request, from 1.

        A request that comes again, as under an idempotency key, makes new attempts: of an old one nobody
        may know yet whether it was charged.
        """
        number = self._numbers[request] = self._numbers.pop(request, 0) + 1
        if len(self._numbers) > REMEMBERED:
            self._numbers.popitem(last=False)
        return number

    async def paid_before(self, request: RequestId) -> list[tuple[PeerId, SignedReceipt]]:
        """What was paid for a request that comes again, and to whom; the first attempt first.

        Providers that may have been paid, too, are asked for `PATIENCE` seconds.  From then on attempts
        are numbered after all that are known.  Raises TransactionFailed where the Journal fails.
        """
        with trio.move_on_after(PATIENCE):
            for tab in self.tabs.doubtful():
                if any(attempt.request == request for attempt in tab.doubtful):
                    with suppress(MeshError):
                        await self.tabs.agree(tab)
        rows = await self.tabs.receipts(request)
        known = [row.signed.attempt for row in rows] + self.tabs.unknown(request)
        highest = max((attempt.number for attempt in known), default=0)
        self._numbers[request] = max(highest, self._numbers.pop(request, 0))
        return [(row.peer, row.signed) for row in rows]

    @asynccontextmanager
    async def paid(
        self,
        candidate: Candidate,
        attempt: AttemptId,
        purse: DurablePurse | None,
        window: float,
        *,
        wait: bool,
    ) -> AsyncGenerator[Purchase]:
        """Hold the fee of a candidate for the block.

        Where as many attempts are under way with the provider as it is trusted with, it waits for one to
        end, or raises NodeBusy unless `wait`.  Raises InsufficientBalance where the purse or this node's
        account does not cover the fee, and as `Tabs.ready`; then nothing is held.  A block that fails
        frees what it held if the attempt was not sent or the provider refused it; otherwise it stays held
        until the provider is asked, which `run` does.
        """
        if candidate.payee is None or candidate.payee.terms is None:
            raise RuntimeError("Only an offer with a payee and terms is paid for.")
        self.tabs.accuser.know(candidate.payee.offer, candidate.payee.terms)
        if purse is not None:
            await purse.hold(attempt, candidate.fee)
        try:
            tab, session, voucher = await self._reserved(candidate, candidate.payee, attempt, window, wait)
        except BaseException:
            if purse is not None:
                purse.release(attempt)
            raise
        payment = Payment(tab.channel.id, candidate.payee.offer, voucher)
        purchase = Purchase(attempt, candidate.fee, tab, session, payment, purse)
        try:
            yield purchase
        except BaseException as error:
            self._failed(purchase, error)
            raise

    def settle(self, purchase: Purchase, receipt: SignedReceipt) -> None:
        """Count a receipt.  Raises ValidationFailed for one that is forged or charges what it may not."""
        channel, attempt, price = purchase.tab.channel, purchase.attempt, receipt.charge.price
        if not price:
            check_receipt(receipt, channel.chain)
            self._release(purchase)
            return
        try:
            channel.ack(receipt)
        finally:
            self.tabs.backlog.add_books(purchase.tab.books)
        purchase.settled = True
        self.tabs.backlog.add(StoreReceipt(ReceiptRow(Side.PAYER, purchase.tab.peer, receipt)))
        if purchase.purse is not None:
            purchase.purse.spend(attempt, price)
        purchase.tab.room.unpark_all()

    async def run(self) -> None:
        """Write down what was spent, and ask after what is not known, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tabs.backlog.run)
            nursery.start_soon(self.tabs.accuser.run)
            nursery.start_soon(self._fill_up, nursery)
            while True:
                for tab in self.tabs.doubtful():
                    if not tab.resolving:
                        tab.resolving = True
                        nursery.start_soon(self._resolve, tab)
                await self.tabs.doubt.wait()
                self.tabs.doubt = trio.Event()

    async def _fill_up(self, nursery: trio.Nursery) -> None:
        async for candidate, payee in self._fillable:
            nursery.start_soon(self._fill, candidate, payee)

    async def _fill(self, candidate: Candidate, payee: Payee) -> None:
        try:
            await self.tabs.fill(candidate, payee, PATIENCE)
        except MeshError as error:
            log.info("the deposit for %s is not filled up yet: %s", candidate.peer_id, error.message)

    async def _resolve(self, tab: Tab) -> None:
        pause = SOON
        while tab.doubtful and not tab.cheated:  # then what is held is as good as spent
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST)
            try:
                await self.tabs.agree(tab)
            except MeshError as error:
                log.info("what %s has charged is not known yet: %s", tab.peer, error.message)
        tab.resolving = False

    async def _reserved(
        self, candidate: Candidate, payee: Payee, attempt: AttemptId, window: float, wait: bool
    ) -> tuple[Tab, Session, SignedVoucher]:
        sign = self.tabs.credentials.signer.sign
        while True:
            tab, session = await self.tabs.ready(candidate, payee, window)
            try:
                voucher = tab.channel.reserve(attempt, candidate.fee, sign)
            except NodeBusy:
                if not wait:
                    raise
                await tab.room.park()
            else:
                if self.tabs.runs_low(tab, candidate.fee):
                    with suppress(trio.WouldBlock):
                        self._low.send_nowait((candidate, payee))
                return tab, session, voucher

    def _failed(self, purchase: Purchase, error: BaseException) -> None:
        if purchase.settled:
            return
        told = isinstance(error, MeshError) and error.remote and not isinstance(error, _UNCERTAIN)
        if told or not purchase.sent:
            if out_of_step(error):
                purchase.tab.session = None
            self._release(purchase)
            return
        tab = purchase.tab
        self.tabs.lose(tab, purchase.attempt, purchase.quote, purchase.purse)
        tab.room.unpark_all()  # who waits there may find that the provider is gone

    def _release(self, purchase: Purchase) -> None:
        purchase.settled = True
        purchase.tab.channel.release(purchase.attempt)
        if purchase.purse is not None:
            purchase.purse.release(purchase.attempt)
        purchase.tab.room.unpark_all()


def out_of_step(error: BaseException) -> bool:
    """Whether a provider says that it sees the channel otherwise; both ends then have to agree anew."""
    return isinstance(error, InsufficientBalance | Conflict) and error.remote


@asynccontextmanager
async def open_payments(tabs: Tabs) -> AsyncGenerator[Payments]:
    """Take up the channels of earlier; leaving writes down what was spent."""
    await tabs.load()
    try:
        yield Payments(tabs)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH):
            try:
                await tabs.backlog.flush()
            except TransactionFailed as error:
                log.error("what was spent last is not written down: %s", error.message)
