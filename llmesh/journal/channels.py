"""Channels as rows: the deposit, what was charged, best voucher, last receipt, attempts in doubt.

The rules of admission and exposure are core's; here figures that may only grow never shrink,
in whatever order they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.core.amount import Amount
from llmesh.core.channel import NOTHING, Deposit, ProviderBooks
from llmesh.core.ids import AttemptId, PeerId, RequestId
from llmesh.core.payer import PayerBooks
from llmesh.core.receipt import SignedReceipt
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, read_config
from llmesh.errors import Conflict
from llmesh.journal.columns import (
    Side,
    pack_amount,
    pack_signed,
    read_amount,
    read_best,
    read_last,
)

__all__ = [
    "AddChannel",
    "ChangeSalt",
    "ChannelRow",
    "RecordDeposit",
    "RecordPayerBooks",
    "RecordProviderBooks",
    "ReleaseReservation",
    "RemoveChannel",
    "Reservation",
    "Reserve",
    "all_channels",
    "earned",
    "find_channel",
    "reservations",
    "unclaimed_channels",
]

_SELECT = (
    "SELECT side, id, peer, config, balance, claimed, withdrawing, charged, best, last, good, broken"
    " FROM channel "
)
NO_DEPOSIT = Deposit()
"""What a channel has that the ledger has not shown yet."""


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """One end of a channel with `peer`.

    `deposit` is what the ledger last said; `charged` is the sum of all fees known to this end; `good`
    and `broken` (why nothing more is authorised) are the payer's.
    """

    side: Side
    id: ChannelId
    peer: PeerId
    config: ChannelConfig
    deposit: Deposit = NO_DEPOSIT
    charged: Amount = NOTHING
    best: SignedVoucher | None = None
    last: SignedReceipt | None = None
    good: int = 0
    broken: str = ""

    @property
    def provider_books(self) -> ProviderBooks:
        """What a ProviderChannel starts from."""
        return ProviderBooks(self.best, self.last)

    @property
    def payer_books(self) -> PayerBooks:
        """What a PayerChannel starts from."""
        return PayerBooks(self.charged, self.best, self.last, self.good)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The quote of an attempt whose outcome the payer does not know yet; `since` in seconds."""

    channel: ChannelId
    attempt: AttemptId
    quote: Amount
    since: float


@dataclass(frozen=True, slots=True)
class AddChannel:
    """A new channel.  Conflict if this end of it is there already."""

    channel: ChannelRow

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row = self.channel
        db.execute(
            "INSERT INTO channel (side, id, peer, config, balance, claimed, withdrawing, charged, best, last,"
            " good, broken) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                row.side, row.id, row.peer, row.config.packed, *_pack_deposit(row.deposit),
                pack_amount(row.charged), pack_signed(row.best), pack_signed(row.last), row.good, row.broken,
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(f"The channel {row.id.hex()} is in the journal already.")


@dataclass(frozen=True, slots=True)
class RecordDeposit:
    """What the ledger says of a channel now; what was claimed only grows."""

    side: Side
    id: ChannelId
    deposit: Deposit

    def apply(self, db: apsw.Connection) -> None:
        """Overwrite balance and withdrawal, raise what was claimed."""
        db.execute(
            "UPDATE channel SET balance = ?, claimed = max(claimed, ?), withdrawing = ?"
            " WHERE side = ? AND id = ?",
            (*_pack_deposit(self.deposit), self.side, self.id),
        )
        expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class RecordProviderBooks:
    """What a provider learnt from a Sync: a better voucher, or charges that its journal had lost.

    A charge of its own goes by `RecordCharge`.  Lower figures than the journal's change nothing.
    """

    id: ChannelId
    books: ProviderBooks

    def apply(self, db: apsw.Connection) -> None:
        """Raise each of them."""
        books = self.books
        charged = books.last.charge.cumulative if books.last else NOTHING
        db.execute(
            "UPDATE channel SET best = max(best, ?1),"  # of one channel the higher ceiling sorts last
            " last = CASE WHEN ?2 > charged THEN ?3 ELSE last END, charged = max(charged, ?2)"
            " WHERE side = 'provider' AND id = ?4",
            (pack_signed(books.best), pack_amount(charged), pack_signed(books.last), self.id),
        )
        expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class RecordPayerBooks:
    """The payer's books as they are now; `broken` says why nothing more may be authorised.

    What was spent and authorised never shrinks, and what broke stays broken.
    """

    id: ChannelId
    books: PayerBooks
    broken: str = ""

    def apply(self, db: apsw.Connection) -> None:
        """Overwrite the rest."""
        books = self.books
        db.execute(
            "UPDATE channel SET charged = max(charged, ?), best = max(best, ?), last = ?, good = ?,"
            " broken = CASE WHEN broken = '' THEN ? ELSE broken END WHERE side = 'payer' AND id = ?",
            (
                pack_amount(books.spent), pack_signed(books.signed), pack_signed(books.last),
                books.good, self.broken, self.id,
            ),
        )  # fmt: skip
        expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class ChangeSalt:
    """Be paid by channels of another salt from now on."""

    salt: bytes

    def apply(self, db: apsw.Connection) -> None:
        """Overwrite it."""
        db.execute("UPDATE journal SET salt = ?", (self.salt,))


@dataclass(frozen=True, slots=True)
class RemoveChannel:
    """A channel that the ledger has closed, with its reservations; one that is gone stays gone."""

    side: Side
    id: ChannelId

    def apply(self, db: apsw.Connection) -> None:
        """Delete the rows."""
        db.execute("DELETE FROM channel WHERE side = ? AND id = ?", (self.side, self.id))
        if self.side is Side.PAYER:
            db.execute("DELETE FROM reservation WHERE channel = ?", (self.id,))


@dataclass(frozen=True, slots=True)
class Reserve:
    """Keep the quote of an attempt in doubt over a restart; a second time changes nothing."""

    reservation: Reservation

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row = self.reservation
        db.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (row.channel, *row.attempt, pack_amount(row.quote), row.since),
        )


@dataclass(frozen=True, slots=True)
class ReleaseReservation:
    """The outcome of an attempt is known; one that was not reserved is fine."""

    channel: ChannelId
    attempt: AttemptId

    def apply(self, db: apsw.Connection) -> None:
        """Delete the row."""
        db.execute(
            "DELETE FROM reservation WHERE channel = ? AND request = ? AND attempt = ?",
            (self.channel, *self.attempt),
        )


def find_channel(db: apsw.Connection, side: Side, channel: ChannelId) -> ChannelRow | None:
    """One end of a channel."""
    rows = db.execute(f"{_SELECT}WHERE side = ? AND id = ?", (side, channel))
    return next(map(_channel, rows), None)


def all_channels(db: apsw.Connection, side: Side) -> list[ChannelRow]:
    """All channels of which this node is that end, in the order of their ids."""
    return [_channel(row) for row in db.execute(f"{_SELECT}WHERE side = ? ORDER BY id", (side,))]


def unclaimed_channels(db: apsw.Connection) -> list[ChannelRow]:
    """Channels that were charged more than is known to be claimed, in the order of their ids."""
    query = f"{_SELECT}WHERE side = 'provider' AND charged > claimed ORDER BY id"
    return [_channel(row) for row in db.execute(query)]


def earned(db: apsw.Connection) -> Amount:
    """All that this node has ever charged, claimed or not."""
    sums = db.execute("SELECT charged FROM channel WHERE side = 'provider'")
    return Amount(sum(int.from_bytes(charged, "big") for (charged,) in sums))


def reservations(db: apsw.Connection) -> list[Reservation]:
    """All attempts in doubt, the oldest first."""
    query = "SELECT channel, request, attempt, quote, since FROM reservation ORDER BY since"
    return [
        Reservation(channel, AttemptId(RequestId(request), number), read_amount(quote), since)
        for channel, request, number, quote, since in db.execute(query)
    ]


def expect_channel(db: apsw.Connection, channel: ChannelId) -> None:
    """Raise Conflict unless the last statement met a row."""
    if not db.changes():
        raise Conflict(f"The channel {channel.hex()} is not in the journal.")


def _pack_deposit(deposit: Deposit) -> tuple[bytes, bytes, bytes]:
    return pack_amount(deposit.balance), pack_amount(deposit.claimed), pack_amount(deposit.withdrawing)


def _channel(row: tuple[Any, ...]) -> ChannelRow:
    side, channel, peer, config, balance, claimed, withdrawing, charged, best, last, good, broken = row
    return ChannelRow(
        Side(side),
        ChannelId(channel),
        PeerId(peer),
        read_config(config),
        Deposit(read_amount(balance), read_amount(claimed), read_amount(withdrawing)),
        read_amount(charged),
        read_best(best),
        read_last(last),
        good,
        broken,
    )
