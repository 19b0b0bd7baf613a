"""The provider's side of a payment channel, and the Sync by which either side repairs its memory.

A pure state machine: admit reserves, charge books, committed makes it known once the Journal has it.
What is charged never exceeds the best voucher's ceiling nor the deposit.  The consumer's side is
core.payer.  After x402's `batch-settlement`, with many attempts in flight where x402 allows one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId
from llmesh.core.receipt import Charge, SignedReceipt, check_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, SignedVoucher, channel_id, check_voucher
from llmesh.errors import Conflict, InsufficientBalance, MeshError, NodeBusy, ValidationFailed

__all__ = [
    "MAX_ATTEMPTS", "NEW", "NOTHING", "Deposit", "ProviderBooks", "ProviderChannel", "Sync", "SyncRequest",
    "check_channel_receipt",
]  # fmt: skip

NOTHING = Amount(0)

MAX_ATTEMPTS = 64
"""Attempts of one channel in flight at a provider, and the most that one Sync speaks of."""

_RECENT = 1024
"""Outcomes that are remembered here, so that a look into the Journal may take a while."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """What the ledger says of a channel: paid in, claimed so far, and asked back by its payer."""

    balance: Amount = NOTHING
    claimed: Amount = NOTHING
    withdrawing: Amount = NOTHING

    @property
    def usable(self) -> Amount:
        """The most that may have been charged in all."""
        return Amount(max(self.balance.micro - self.withdrawing.micro, self.claimed.micro))


@dataclass(frozen=True, slots=True)
class ProviderBooks:
    """What a provider's Journal holds of a channel: its best voucher, and its receipt of highest sequence."""

    best: SignedVoucher | None = None
    last: SignedReceipt | None = None


NEW = ProviderBooks()
"""The books of a channel that was never used."""


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The payer's memory: its best voucher, its last receipt, the attempts whose fate it does not know."""

    best: SignedVoucher | None
    last: SignedReceipt | None
    lost: tuple[AttemptId, ...] = ()

    def __post_init__(self) -> None:
        if len(self.lost) > MAX_ATTEMPTS:
            raise ValidationFailed(f"A sync asks for at most {MAX_ATTEMPTS} attempts.")


@dataclass(frozen=True, slots=True)
class Sync:
    """The provider's memory, all of it durable but `running`.

    `charged` has the receipts of the attempts that were asked for; what was asked for and is neither
    there nor `running` was not charged and will not be.
    """

    best: SignedVoucher | None
    last: SignedReceipt | None
    charged: tuple[SignedReceipt, ...] = ()
    running: tuple[tuple[AttemptId, Amount], ...] = ()

    def __post_init__(self) -> None:
        if len(self.charged) > MAX_ATTEMPTS or len(self.running) > MAX_ATTEMPTS:
            raise ValidationFailed(f"A sync speaks of at most {MAX_ATTEMPTS} attempts.")


class ProviderChannel:
    """One channel as its provider runs it; every method is one indivisible step.

    `charged` and `sequence` are ahead of `last`, the last receipt in the Journal, by what is being
    committed.  Set `deposit` anew whenever the ledger says so.
    """

    def __init__(
        self, config: ChannelConfig, chain: Chain, deposit: Deposit, books: ProviderBooks = NEW
    ) -> None:
        self.config = config
        self.chain = chain
        self.id = channel_id(config, chain)
        self.deposit = deposit
        self._reserved: dict[AttemptId, Amount] = {}
        self._committing: dict[AttemptId, Amount] = {}
        self._recent: OrderedDict[AttemptId, SignedReceipt | None] = OrderedDict()
        self._session = 0
        self.best: SignedVoucher | None = None
        self.last: SignedReceipt | None = None
        self._open(books)

    @property
    def reserved(self) -> Amount:
        """What attempts under way may still come to be charged."""
        return Amount(sum(quote.micro for quote in self._reserved.values()))

    @property
    def covered(self) -> Amount:
        """The most that may be charged in all: the best ceiling, and the deposit that stands behind it."""
        return min(self.best.ceiling, self.deposit.usable) if self.best else NOTHING

    @property
    def claimable(self) -> Amount:
        """What is durably charged, in all, if more than is claimed already; else nothing."""
        charged = self.last.charge.cumulative if self.last else NOTHING
        return charged if charged > self.deposit.claimed else NOTHING

    def admit(
        self,
        attempt: AttemptId,
        quote: Amount,
        voucher: SignedVoucher | None,
        session: int,
        stored: SignedReceipt | None = None,
    ) -> SignedReceipt | None:
        """Reserve the quote of an attempt; or give the receipt of one that was charged before.

        `session` is the number of the session it came by, as this node counts them; `stored` the receipt
        that the Journal has of it: look there first, then call this.  Raises ValidationFailed for a forged
        voucher, InsufficientBalance where voucher or deposit do not cover the quote (the payer then
        syncs), Conflict for an attempt that is under way, was declared not charged or comes by a session
        from before the last sync's, NodeBusy for too many.  A refusal reserves nothing and is final for
        this attempt; only a better voucher is kept.
        """
        known = stored or self._recent.get(attempt)
        if known is not None:
            return known
        self._refuse_stale(session)
        self._refuse_repeated(attempt)
        if voucher is not None:
            self._take(voucher)
        refusal = self._refusal(quote)
        if refusal is not None:
            self._remember(attempt, None)
            raise refusal
        self._reserved[attempt] = quote
        return None

    def charge(self, attempt: AttemptId, price: Amount) -> Charge:
        """Book what a served attempt cost, for its receipt; commit that with `best`, then call `committed`.

        Raises RuntimeError, changing nothing, for what was not reserved or is not within its quote.
        """
        quote = self._reserved.get(attempt)
        if quote is None or not NOTHING < price <= quote:
            raise RuntimeError(f"{price} MESH cannot be charged where {quote} was reserved.")
        del self._reserved[attempt]
        self._committing[attempt] = price
        self.charged += price
        self.sequence += 1
        return Charge(self.id, self.sequence, price, self.charged)

    def committed(self, receipt: SignedReceipt) -> None:
        """The Journal has this receipt, and all of lower sequence; now its answer may leave."""
        self._committing.pop(receipt.attempt, None)
        self._remember(receipt.attempt, receipt)
        if self.last is None or receipt.charge.sequence > self.last.charge.sequence:
            self.last = receipt

    def release(self, attempt: AttemptId) -> None:
        """Free what was reserved: nothing was delivered, and it will never be charged.  Safe to repeat."""
        if self._reserved.pop(attempt, None) is not None:
            self._remember(attempt, None)

    def reload(self, books: ProviderBooks) -> None:
        """Go back to what the Journal has, after a commit failed; what it lacks was not charged.

        The Journal takes nothing in between: a later receipt would count what an earlier one lost.  The
        best voucher stays, for what is still under way hangs on it.
        """
        best = self.best
        self._open(books)
        self.best = best
        for attempt in self._committing:
            self._remember(attempt, None)
        self._committing.clear()

    def sync(self, request: SyncRequest, stored: Mapping[AttemptId, SignedReceipt], session: int) -> Sync:
        """Take from the payer what this side forgot, and tell what is known of the attempts it asks for.

        `stored` are the Journal's receipts of those.  A forgotten charge is taken up again from a receipt
        that this provider signed itself; commit `best` and `last` if they have changed.  From here on what
        still arrives by an earlier session is refused: a payer that forgot it cannot have paid for it.
        Raises ValidationFailed, changing nothing, for what is forged or another channel's; Conflict by an
        earlier session.
        """
        self._refuse_stale(session)
        self._check_memory(request)
        self._session = session
        if request.best is not None:
            self._take(request.best)
        if request.last is not None:
            self._recall(request.last)
        running = {**self._reserved, **self._committing}
        charged = []
        for attempt in request.lost:
            receipt = stored.get(attempt) or self._recent.get(attempt)
            if receipt is not None:
                charged.append(receipt)
            elif attempt not in running:
                self._remember(attempt, None)
        return Sync(self.best, self.last, tuple(charged), tuple(running.items()))

    def _open(self, books: ProviderBooks) -> None:
        self.best, self.last = books.best, books.last
        charge = self.last.charge if self.last else None
        # What was claimed had been charged, whatever else was forgotten.
        self.charged = max(charge.cumulative if charge else NOTHING, self.deposit.claimed)
        self.sequence = charge.sequence if charge else 0

    def _refuse_stale(self, session: int) -> None:
        if session < self._session:
            raise Conflict("The payer has come back by a newer session since.")

    def _refuse_repeated(self, attempt: AttemptId) -> None:
        if attempt in self._reserved or attempt in self._committing:
            raise Conflict(f"Attempt {attempt.number} at this request is under way.")
        if attempt in self._recent:
            raise Conflict(f"Attempt {attempt.number} at this request was given up.")

    def _refusal(self, quote: Amount) -> MeshError | None:
        if len(self._reserved) + len(self._committing) >= MAX_ATTEMPTS:
            return NodeBusy(f"{MAX_ATTEMPTS} attempts of this channel are under way.", retry_after=1.0)
        left = self.covered.micro - self.charged.micro - self.reserved.micro
        if quote.micro <= left:
            return None
        return InsufficientBalance(
            f"The voucher and the deposit leave {Amount(max(left, 0))} MESH for a quote of {quote}."
        )

    def _take(self, voucher: SignedVoucher) -> None:
        """Keep a voucher if it is better than the best; an older one is not even looked at."""
        if self.best is None or voucher.ceiling > self.best.ceiling:
            check_voucher(voucher, self.config, self.chain)
            self.best = voucher

    def _check_memory(self, request: SyncRequest) -> None:
        if request.best is not None:
            check_voucher(request.best, self.config, self.chain)
        if request.last is not None:
            check_channel_receipt(request.last, self.config, self.chain)

    def _recall(self, last: SignedReceipt) -> None:
        if last.charge.cumulative > self.charged:
            self.last, self.charged = last, last.charge.cumulative
            self.sequence = max(self.sequence, last.charge.sequence)

    def _remember(self, attempt: AttemptId, outcome: SignedReceipt | None) -> None:
        self._recent[attempt] = outcome
        self._recent.move_to_end(attempt)
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)


def check_channel_receipt(signed: SignedReceipt, config: ChannelConfig, chain: Chain) -> None:
    """Refuse a receipt that is not of this channel, by the key that may claim from it.

    Raises ValidationFailed.
    """
    if signed.charge.channel != channel_id(config, chain):
        raise ValidationFailed("The receipt is of another channel.")
    if signed.receipt.provider != config.receiver_authorizer:
        raise ValidationFailed("The receipt is not by the provider of this channel.")
    check_receipt(signed, chain)
