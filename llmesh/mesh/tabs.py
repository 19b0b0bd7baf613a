"""Tabs: the channels by which this node pays, one for each account that it buys from.

A tab is opened when it is first needed: the provider confirms what it offers, then a deposit is made,
then both ends agree where they stand.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import trio

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.binding import check_binding
from llmesh.core.channel import MAX_ATTEMPTS, Deposit
from llmesh.core.credentials import Credentials, Payee
from llmesh.core.ids import AttemptId, PeerId, RequestId
from llmesh.core.payer import LEFT, PayerBooks, PayerChannel, has_cheated
from llmesh.core.payment import Confirm, Reconcile
from llmesh.core.ranking import Candidate
from llmesh.core.receipt import SignedReceipt
from llmesh.core.voucher import ChannelConfig, channel_id
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    MeshError,
    NetworkError,
    NodeUnreachable,
    ValidationFailed,
)
from llmesh.journal.channels import (
    AddChannel,
    ChannelRow,
    RecordDeposit,
    RecordPayerBooks,
    ReleaseReservation,
    Reservation,
    Reserve,
    all_channels,
    reservations,
)
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.journal.purse import DurablePurse
from llmesh.journal.receipts import ReceiptRow, StoreReceipt, receipts_of
from llmesh.ledger.ledger import Ledger
from llmesh.mesh.accuser import Accuser
from llmesh.mesh.backlog import Backlog
from llmesh.mesh.deposits import AWAY, Deposits
from llmesh.mesh.teller import Teller
from llmesh.net.payment import confirm, reconcile
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions

__all__ = ["PaymentSettings", "Tab", "Tabs", "blamed"]

AGREEMENT = 8.0
"""Seconds for a provider to say where a channel stands; its copy of the ledger may be a little behind."""


MOST_LEFT = 2
"""Channels to one provider that may still hold money of this node's when it wants one more."""


@dataclass(frozen=True, slots=True)
class PaymentSettings:
    """A deposit covers `quotes` inferences; it is locked for `withdraw_delay` seconds once asked back.

    `clock` gives seconds since 1970.
    """

    quotes: int = 100
    withdraw_delay: int = 86_400
    clock: Callable[[], float] = time.time


@dataclass(slots=True, eq=False)
class Tab:
    """A channel to a provider; `session` is the one by which both ends last agreed.

    `doubtful` are attempts of unknown outcome, each with the purse that holds its quote; who waits for
    the window parks in `room`.  From `low_from` on its deposit may be filled up beside.
    """

    peer: PeerId
    channel: PayerChannel
    addresses: tuple[str, ...] = ()
    session: Session | None = None
    doubtful: dict[AttemptId, DurablePurse | None] = field(default_factory=dict)
    room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    resolving: bool = False
    low_from: float = -math.inf

    @property
    def cheated(self) -> bool:
        """Whether its provider has, so that nothing it says of the channel counts."""
        return has_cheated(self.channel.broken)

    def serves(self, session: Session | None, quote: Amount) -> bool:
        """Whether an attempt may be paid from it as it is, but for the window."""
        channel = self.channel
        ready = session is not None and self.session is session and channel.synced and not channel.broken
        return ready and channel.left >= quote

    @property
    def books(self) -> RecordPayerBooks:
        """How it stands, for the Journal."""
        return RecordPayerBooks(self.channel.id, self.channel.books, self.channel.broken)


class Tabs:
    """All of them; `load` first.  `doubt` is set when one has an attempt of unknown outcome."""

    def __init__(
        self,
        credentials: Credentials,
        ledger: Ledger,
        journal: Journal,
        teller: Teller,
        sessions: Sessions,
        settings: PaymentSettings,
    ) -> None:
        self.credentials = credentials
        self.settings = settings
        self.backlog = Backlog(journal)
        self.accuser = Accuser(teller, journal)
        self.doubt = trio.Event()
        self._ledger = ledger
        self._journal = journal
        self._deposits = Deposits(ledger, teller, settings.quotes)
        self._sessions = sessions
        self._tabs: dict[Address, Tab] = {}
        self._left: list[Tab] = []
        self._turns: defaultdict[Address, trio.Lock] = defaultdict(trio.Lock)

    async def load(self) -> None:
        """Take up what the Journal has of this ledger's channels.  Raises TransactionFailed."""
        chain = self.credentials.chain
        rows = await self._journal.read(all_channels, Side.PAYER)
        for row in sorted(rows, key=lambda row: row.broken != LEFT):
            if channel_id(row.config, chain) == row.id:
                channel = PayerChannel(row.config, chain, row.deposit, row.payer_books)
                channel.broken = row.broken
                if (former := self._tabs.get(row.config.receiver)) is not None:
                    self._left.append(former)
                self._tabs[row.config.receiver] = Tab(row.peer, channel)
        held = {tab.channel.id: tab for tab in self._all()}
        for reservation in await self._journal.read(reservations):
            if reservation.channel in held:
                held[reservation.channel].doubtful[reservation.attempt] = None

    def lose(self, tab: Tab, attempt: AttemptId, quote: Amount, purse: DurablePurse | None) -> None:
        """Nobody knows what became of an attempt: it stays held until its provider has told."""
        tab.channel.lose(attempt)
        tab.doubtful[attempt] = purse
        reservation = Reservation(tab.channel.id, attempt, quote, self.settings.clock())
        self.backlog.add(Reserve(reservation))
        self.doubt.set()

    def doubtful(self) -> Iterator[Tab]:
        """Those with attempts of unknown outcome."""
        return (tab for tab in self._all() if tab.doubtful)

    def covers(self, candidate: Candidate) -> bool:
        """Whether what is deposited already pays for another inference there."""
        tab = self._tabs.get(candidate.payee.account) if candidate.payee else None
        return tab is not None and not tab.channel.broken and tab.channel.left >= candidate.fee

    def unknown(self, request: RequestId) -> list[AttemptId]:
        """Attempts at a request of which the outcome is not known."""
        held = (attempt for tab in self._all() for attempt in tab.doubtful)
        return [attempt for attempt in held if attempt.request == request]

    async def receipts(self, request: RequestId) -> list[ReceiptRow]:
        """All that this node has of a request that it asked others.  Raises TransactionFailed."""
        await self.backlog.flush()
        rows = await self._journal.read(receipts_of, request)
        return [row for row in rows if row.side is Side.PAYER]

    async def ready(self, candidate: Candidate, payee: Payee, window: float) -> tuple[Tab, Session]:
        """The tab with a provider from which its fee can be paid now, and the session to ask by.

        No checkpoint comes after the last look.  Raises NodeUnreachable where the provider says nothing
        within `window` seconds, what it refuses with, InsufficientBalance where this node has not got the
        money, TransactionFailed where the ledger is out of reach, ValidationFailed with `peer_id` for a
        provider that has cheated.
        """
        while True:
            tab = self._tabs.get(payee.account)
            session = self._sessions.get(candidate.peer_id)
            if tab is not None and session is not None and tab.serves(session, candidate.fee):
                return tab, session
            async with self._turns[payee.account]:
                tab = self._tabs.get(payee.account)
                if tab is None or not tab.serves(self._sessions.get(candidate.peer_id), candidate.fee):
                    await self._prepare(candidate, payee, window)

    async def agree(self, tab: Tab) -> None:
        """Find out about attempts of unknown outcome.  Raises as `ready`."""
        async with self._turns[tab.channel.config.receiver]:
            with _bounded(tab.peer, AGREEMENT):
                session = await self._sessions.to(tab.peer, tab.addresses)
            await self._reconcile(tab, session)

    def runs_low(self, tab: Tab, quote: Amount) -> bool:
        """Whether a deposit should be filled up beside; then it is not said again for a while."""
        if not self._deposits.is_low(tab.channel, quote) or tab.low_from > trio.current_time():
            return False
        tab.low_from = trio.current_time() + AWAY
        return True

    async def fill(self, candidate: Candidate, payee: Payee, window: float) -> None:
        """Fill up a deposit while requests go on to use it.  Raises as `ready`."""
        async with self._turns[payee.account]:
            tab, session = self._tabs[payee.account], self._sessions.get(candidate.peer_id)
            if session is None or tab.session is not session or tab.channel.broken:
                return
            if await self._moved(tab, session, (candidate, payee), window) or tab.channel.broken:
                return
            await self._deposits.fill(tab.channel, candidate.fee)
            deposit = await self._deposits.seen(tab.channel)
            if deposit != tab.channel.deposit:
                await self._reconcile(tab, session, deposit)  # first the provider counts on it, then we
                await self._look(tab)
                tab.low_from = -math.inf

    async def _prepare(self, candidate: Candidate, payee: Payee, window: float) -> None:
        with _bounded(candidate.peer_id, window):
            session = await self._sessions.to(candidate.peer_id, candidate.addresses)
        tab, salt = self._tabs.get(payee.account), None
        if tab is not None and tab.cheated:
            raise ValidationFailed(tab.channel.broken, peer_id=candidate.peer_id)
        if tab is None or tab.session is not session:
            salt = await self._confirm(session, candidate, payee, window)
            if tab is None or tab.channel.config.salt != salt:
                tab = self._tabs[payee.account] = await self._other(tab, candidate, payee, salt)
        tab.peer, tab.addresses = candidate.peer_id, candidate.addresses
        await self._look(tab)
        if tab.channel.deposit.balance and (tab.session is not session or not tab.channel.synced):
            await self._reconcile(tab, session)
        if tab.channel.broken:
            raise ValidationFailed(tab.channel.broken, peer_id=candidate.peer_id)
        if tab.channel.left < candidate.fee:
            if salt is None and await self._moved(tab, session, (candidate, payee), window):
                return
            await self._deposits.cover(tab.channel, candidate.fee)
            await self._look(tab)
            tab.session = None  # the provider has yet to see it
            await self._reconcile(tab, session)

    async def _other(self, tab: Tab | None, candidate: Candidate, payee: Payee, salt: bytes) -> Tab:
        """A tab by which the provider is paid from now on; only then another is left, if there is one."""
        left = {(other.channel.config.receiver, other.channel.config.salt): other for other in self._left}
        other = left.get((payee.account, salt))
        if other is not None and other.channel.broken:
            raise ValidationFailed(other.channel.broken, peer_id=candidate.peer_id)
        if tab is not None:
            await self._agree_last(tab, candidate)
        if other is None:
            other = await self._new(candidate, payee, salt)
        else:
            self._left.remove(other)
        if tab is not None:
            tab.channel.broken = LEFT  # what is left there is taken back
            self.backlog.add_books(tab.books)
            self._left.append(tab)
            tab.room.unpark_all()
        return other

    async def _agree_last(self, tab: Tab, candidate: Candidate) -> None:
        """Let the provider know once more what it may claim, for it may have forgotten."""
        account, holding = tab.channel.config.receiver, 0
        for former in list(self._left):
            deposit = await self._deposits.seen(former.channel)
            gone = max(deposit.claimed, former.channel.books.spent)
            holding += former.channel.config.receiver == account and deposit.balance > gone
        if holding >= MOST_LEFT:
            raise ValidationFailed("It wants another channel again and again.", peer_id=candidate.peer_id)
        await self._look(tab)
        if tab.channel.deposit.balance:
            with _bounded(candidate.peer_id, AGREEMENT):
                session = await self._sessions.to(candidate.peer_id, candidate.addresses)
            await self._reconcile(tab, session)
            tab.session = None  # nothing more is asked for by it

    def _all(self) -> list[Tab]:
        return [*self._tabs.values(), *self._left]

    async def _confirm(self, session: Session, candidate: Candidate, payee: Payee, window: float) -> bytes:
        """Have the provider itself stand by its offer, before any money moves; the salt of its channels."""
        asked = Confirm(candidate.offer.model_id, payee.offer, candidate.fee)
        with _bounded(candidate.peer_id, window):
            said = await confirm(session, asked, window)
        binding = said.binding.binding
        with blamed(candidate.peer_id):
            check_binding(said.binding, self.settings.clock())
            if (binding.node, binding.account, binding.chain) != (
                candidate.peer_id, payee.account, payee.chain,
            ) or said.terms != payee.terms:  # fmt: skip
                raise ValidationFailed("The provider confirms something else than it announced.")
        return said.salt

    async def _moved(self, tab: Tab, session: Session, offer: tuple[Candidate, Payee], window: float) -> bool:
        """Have an offer confirmed; whether its provider is paid by another channel by now."""
        if await self._confirm(session, *offer, window) == tab.channel.config.salt:
            return False
        tab.session = None  # `ready` then finds the other one
        return True

    async def _new(self, candidate: Candidate, payee: Payee, salt: bytes) -> Tab:
        """A tab, known to the Journal before anything is paid in; one that was forgotten is found again."""
        own = self.credentials.signer.address
        token, delay = payee.chain.contract, self.settings.withdraw_delay
        config = ChannelConfig(own, own, payee.account, payee.account, token, delay, salt)
        mark = channel_id(config, payee.chain)
        cell = await self._ledger.channel(mark)
        deposit = cell.deposit if cell else Deposit()
        channel = PayerChannel(config, payee.chain, deposit, PayerBooks() if cell else None)
        row = ChannelRow(Side.PAYER, mark, candidate.peer_id, config, deposit)
        await self._journal.commit(AddChannel(row))
        return Tab(candidate.peer_id, channel)

    async def _look(self, tab: Tab) -> None:
        """Count on what the ledger says is deposited."""
        deposit = await self._deposits.seen(tab.channel)
        if deposit != tab.channel.deposit:
            tab.channel.deposit = deposit
            self.backlog.add(RecordDeposit(Side.PAYER, tab.channel.id, deposit))

    async def _reconcile(self, tab: Tab, session: Session, deposit: Deposit | None = None) -> None:
        """Agree with the provider, who is to see `deposit` or the one that is counted on."""
        channel = tab.channel
        asked = channel.sync_request()
        if not channel.synced:
            asked = replace(asked, lost=tuple(tab.doubtful)[:MAX_ATTEMPTS])
        binding = self.credentials.binding(self.settings.clock())
        told = Reconcile(channel.config, binding, asked, (deposit or channel.deposit).balance)
        with _bounded(tab.peer, AGREEMENT):
            answer = await reconcile(session, told, AGREEMENT)
        try:
            with blamed(tab.peer):
                channel.sync(asked, answer)
        finally:
            self.backlog.add_books(tab.books)
            self.accuser.compare((*answer.charged, *((answer.last,) if answer.last else ())))
        charged = {receipt.attempt: receipt for receipt in answer.charged}
        for attempt in set(asked.lost) - {attempt for attempt, _ in answer.running}:
            self._settle(tab, attempt, charged.get(attempt))
        for attempt, quote in answer.running:
            if attempt in channel.lost and attempt not in tab.doubtful:  # of an earlier life of this node
                self.lose(tab, attempt, quote, None)
        tab.session = session
        tab.room.unpark_all()

    def _settle(self, tab: Tab, attempt: AttemptId, receipt: SignedReceipt | None) -> None:
        """The outcome of a doubtful attempt is known."""
        purse = tab.doubtful.pop(attempt, None)
        self.backlog.add(ReleaseReservation(tab.channel.id, attempt))
        if receipt is None:
            if purse is not None:
                purse.release(attempt)
            return
        self.backlog.add(StoreReceipt(ReceiptRow(Side.PAYER, tab.peer, receipt)))
        if purse is not None:
            purse.spend(attempt, receipt.charge.price)


@contextmanager
def _bounded(peer: PeerId, seconds: float) -> Iterator[None]:
    """A word with a peer that must not take longer; what it refuses with is no fault of the caller's."""
    try:
        with trio.move_on_after(seconds):
            yield
            return
    except MeshError as error:
        if not error.remote or error.try_next() or isinstance(error, InsufficientBalance | Conflict):
            raise
        raise NetworkError(
            f"{peer} does not take this node's payment: {error.message}", peer_id=peer
        ) from error
    raise NodeUnreachable(f"{peer} did not answer about payment within {seconds:.3g} s.", peer_id=peer)


@contextmanager
def blamed(peer: PeerId) -> Iterator[None]:
    """What is found wrong here is what that peer said."""
    try:
        yield
    except ValidationFailed as error:
        raise ValidationFailed(error.message, peer_id=peer) from None
