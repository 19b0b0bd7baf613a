"""The consumer's side of a payment channel: how much to authorise, and what to believe was charged.

A pure state machine.  A ceiling covers what was spent and what is in flight, and never more than the
window's worth on top, which is all that a dishonest provider can take.  The provider's side, and Sync,
are core.channel.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmesh.core.amount import Amount
from llmesh.core.channel import MAX_ATTEMPTS, NOTHING, Deposit, Sync, SyncRequest, check_channel_receipt
from llmesh.core.ids import AttemptId
from llmesh.core.receipt import SignedReceipt
from llmesh.core.typed import Chain, Sign
from llmesh.core.voucher import ChannelConfig, SignedVoucher, Voucher, channel_id, check_voucher, sign_voucher
from llmesh.errors import Conflict, InsufficientBalance, NodeBusy, ValidationFailed

__all__ = ["AHEAD", "LEFT", "PayerBooks", "PayerChannel", "has_cheated", "window"]

AHEAD = 16
"""A voucher covers up to this many attempts of the same quote, where the window allows as many."""

LEFT = "Its provider was restored from a backup and is paid by another channel now."
"""Why nothing more is authorised on a channel though nobody has cheated."""

_RECENT = 1024
"""Attempts that are over and still remembered, so that what is said of them late has no effect."""


def window(good: int) -> int:
    """Attempts that may be in flight after so many good receipts: 1, then 4, then up to 64."""
    return 1 if good < 4 else max(4, min(MAX_ATTEMPTS, good // 4))


def has_cheated(broken: str) -> bool:
    """Whether that is why a channel is broken, so that nothing its provider says of it counts."""
    return broken not in ("", LEFT)


@dataclass(frozen=True, slots=True)
class PayerBooks:
    """What a payer's Journal holds of a channel; a second out of date does no harm, since Sync repairs it.

    `spent` is what its receipts add up to, `good` how many there were.
    """

    spent: Amount = NOTHING
    signed: SignedVoucher | None = None
    last: SignedReceipt | None = None
    good: int = 0


class PayerChannel:
    """One channel as its payer runs it; every method is one indivisible step.

    Opened from a Journal it must `sync` before it reserves (`synced` is False) and takes the provider's
    word, within what it signed, for what it forgot; a channel that was never used needs none.  Once
    `broken` says why, nothing more is authorised: withdraw.
    """

    def __init__(
        self, config: ChannelConfig, chain: Chain, deposit: Deposit, books: PayerBooks | None = None
    ) -> None:
        self.config = config
        self.chain = chain
        self.id = channel_id(config, chain)
        self.deposit = deposit
        self.synced = books is None
        self.broken = ""
        self.books = books or PayerBooks()
        self._in_flight: dict[AttemptId, Amount] = {}
        self._lost: dict[AttemptId, None] = {}
        self._over: OrderedDict[AttemptId, None] = OrderedDict()
        self._adopted = NOTHING

    @property
    def reserved(self) -> Amount:
        """What attempts in flight, and those of unknown outcome, may still come to cost."""
        return _total(self._in_flight.values())

    @property
    def left(self) -> Amount:
        """What the deposit has left for further attempts."""
        return Amount(max(0, self.deposit.usable.micro - self.books.spent.micro - self.reserved.micro))

    @property
    def exposure(self) -> Amount:
        """What a dishonest provider could take: authorised, and not known to be spent."""
        return Amount(max(0, _ceiling(self.books.signed).micro - self.books.spent.micro))

    @property
    def room(self) -> int:
        """Further attempts that the window has room for now."""
        return max(0, window(self.books.good) - len(self._in_flight))

    @property
    def lost(self) -> tuple[AttemptId, ...]:
        """Attempts of unknown outcome; they stay reserved until a sync settles them."""
        return tuple(self._lost)

    def reserve(self, attempt: AttemptId, quote: Amount, sign: Sign) -> SignedVoucher:
        """Hold the quote of a new attempt; the voucher that covers it, signed only if the last one does not.

        Raises, changing nothing: NodeBusy while the window is full, InsufficientBalance where the deposit
        does not cover it, ValidationFailed on a broken channel, Conflict for an attempt that was reserved
        before, RuntimeError before the first sync.
        """
        if not self.synced:
            raise RuntimeError("The channel is not in step.")
        if attempt in self._in_flight or attempt in self._over:
            raise Conflict(f"Attempt {attempt.number} at this request was made before.")
        if self.broken:
            raise ValidationFailed(self.broken)
        if not self.room:
            raise NodeBusy("As many requests are under way with this provider as it is trusted with.")
        needed = self.books.spent.micro + self.reserved.micro + quote.micro
        if needed > self.deposit.usable.micro:
            raise InsufficientBalance(
                f"The channel's deposit of {self.deposit.usable} MESH does not cover a quote of {quote} more."
            )
        voucher = self._voucher(needed, quote, sign)
        self._in_flight[attempt] = quote
        return voucher

    def release(self, attempt: AttemptId) -> None:
        """The provider said that it delivered nothing; free what was held.  Safe to repeat."""
        if self._in_flight.pop(attempt, None) is not None:
            self._lost.pop(attempt, None)
            self._over[attempt] = None
            if len(self._over) > _RECENT:
                self._over.popitem(last=False)

    def lose(self, attempt: AttemptId) -> None:
        """Nobody knows whether it was charged (link lost, or cut by us); it stays reserved until a sync."""
        if attempt in self._in_flight:
            self._lost[attempt] = None

    def ack(self, signed: SignedReceipt) -> None:
        """Count the receipt of an attempt in flight; one of an attempt that is over has no effect.

        Raises ValidationFailed for a receipt that is forged, for an unknown attempt, above the quote, or
        by which more was charged than was asked for; the last two break the channel.
        """
        check_channel_receipt(signed, self.config, self.chain)
        if signed.attempt in self._over:
            return
        if signed.attempt not in self._in_flight:
            raise ValidationFailed("The receipt is for an attempt that was never made.")
        self._refuse_price(signed)
        self._refuse_overcharge(signed)
        self._count(signed)

    def sync_request(self) -> SyncRequest:
        """What to tell and to ask the provider."""
        return SyncRequest(self.books.signed, self.books.last, self.lost[:MAX_ATTEMPTS])

    def sync(self, asked: SyncRequest, answer: Sync) -> None:
        """Believe the provider's answer as far as signatures go: ours on its voucher, its own on receipts.

        Raises ValidationFailed, changing nothing, for an answer that is forged or speaks of more than was
        asked for; an overcharge that it shows breaks the channel.
        """
        signed = self._check_sync(asked, answer)
        if not self.synced:
            self._adopt(signed, answer)
            return
        self.books = replace(self.books, signed=signed)
        self._settle(asked, answer)
        if answer.last is not None:
            self._refuse_overcharge(answer.last)

    def _voucher(self, needed: int, quote: Amount, sign: Sign) -> SignedVoucher:
        signed = self.books.signed
        if signed is not None and signed.ceiling.micro >= needed:
            return signed
        ahead = quote.micro * (min(AHEAD, self.room) - 1)
        ceiling = Amount(min(needed + ahead, self.deposit.usable.micro))
        signed = sign_voucher(Voucher(self.id, ceiling), self.chain, sign)
        self.books = replace(self.books, signed=signed)
        return signed

    def _refuse_price(self, signed: SignedReceipt) -> None:
        quote = self._in_flight[signed.attempt]
        if signed.charge.price > quote:
            self._break(f"The provider charged {signed.charge.price} MESH where {quote} was agreed to.")

    def _refuse_overcharge(self, last: SignedReceipt) -> None:
        """All that was charged must be counted here, or in flight."""
        known = self.books.spent.micro + self.reserved.micro
        if last.charge.cumulative.micro > known:
            charged = last.charge.cumulative
            self._break(f"The provider has charged {charged} MESH where {Amount(known)} was asked for.")

    def _count(self, signed: SignedReceipt) -> None:
        """What was adopted as spent has in it all that was charged before."""
        self.release(signed.attempt)
        books, new = self.books, signed.charge.cumulative > self._adopted
        self.books = replace(
            books,
            spent=books.spent + signed.charge.price if new else books.spent,
            last=_later(books.last, signed),
            good=books.good + 1,
        )

    def _check_sync(self, asked: SyncRequest, answer: Sync) -> SignedVoucher | None:
        """The best voucher that we are known to have signed, once all signatures are checked."""
        signed = self.books.signed
        if answer.best is not None:
            check_voucher(answer.best, self.config, self.chain)
            signed = answer.best if answer.best.ceiling > _ceiling(signed) else signed
        for receipt in (*answer.charged, *((answer.last,) if answer.last else ())):
            check_channel_receipt(receipt, self.config, self.chain)
            if receipt.charge.cumulative > _ceiling(signed):
                raise ValidationFailed("The provider has charged more than this node ever authorised.")
        if not {receipt.attempt for receipt in answer.charged} <= set(asked.lost):
            raise ValidationFailed("The provider speaks of attempts that it was not asked for.")
        return signed

    def _settle(self, asked: SyncRequest, answer: Sync) -> None:
        """Count what was charged of the attempts asked for, free what was not."""
        running = {attempt for attempt, _ in answer.running}
        for receipt in answer.charged:
            if receipt.attempt in self._in_flight:
                self._refuse_price(receipt)
                self._count(receipt)
        for attempt in asked.lost:
            if attempt not in running:
                self.release(attempt)

    def _adopt(self, signed: SignedVoucher | None, answer: Sync) -> None:
        """Take the provider's word, within what we signed, for what this side no longer knows.

        Attempts of an earlier life that still run count as lost here, until another sync.
        """
        books, last, running = self.books, self.books.last, dict(answer.running)
        spent = books.spent
        if answer.last is not None:
            spent, last = max(spent, answer.last.charge.cumulative), _later(last, answer.last)
        if running and spent.micro + _total(running.values()).micro > _ceiling(signed).micro:
            raise ValidationFailed("More is said to be under way than this node ever authorised.")
        self.books = replace(books, spent=spent, signed=signed, last=last)
        self._in_flight, self._lost = running, dict.fromkeys(running)
        self._adopted = spent
        self.synced = True

    def _break(self, why: str) -> None:
        self.broken = why
        raise ValidationFailed(why)


def _ceiling(signed: SignedVoucher | None) -> Amount:
    return signed.ceiling if signed else NOTHING


def _later(one: SignedReceipt | None, other: SignedReceipt) -> SignedReceipt:
    return other if one is None or other.charge.cumulative > one.charge.cumulative else one


def _total(amounts: Iterable[Amount]) -> Amount:
    return Amount(sum(amount.micro for amount in amounts))
