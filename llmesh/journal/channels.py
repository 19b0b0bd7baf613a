"""Channels as rows: what the ledger holds, what was charged, the best voucher, attempts in doubt.

The rules of admission and exposure are core's; here figures that may only grow never shrink,
in whatever order they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId, RequestId
from llmesh.errors import Conflict
from llmesh.journal.columns import Side, pack_amount, read_amount

__all__ = [
    "AddChannel",
    "AdvanceCharge",
    "ChannelRow",
    "RecordCharge",
    "RecordDeposit",
    "RecordVoucher",
    "ReleaseReservation",
    "RemoveChannel",
    "Reservation",
    "Reserve",
    "all_channels",
    "find_channel",
    "reservations",
]

_NONE = Amount(0)
_SELECT = (
    "SELECT side, id, peer, config, balance, claimed, withdrawing, charged, ceiling, signature FROM channel"
)


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """One end of a channel.

    `id` is the 32-byte digest of `config`; `balance`, `claimed` and `withdrawing` are the ledger's
    figures as last seen; `charged` is the sum of all fees; `ceiling` is the highest that a voucher
    authorises and `signature` that voucher's.
    """

    side: Side
    id: bytes
    peer: PeerId
    config: bytes
    balance: Amount = _NONE
    claimed: Amount = _NONE
    withdrawing: Amount = _NONE
    charged: Amount = _NONE
    ceiling: Amount = _NONE
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The quote of an attempt whose outcome the payer does not know yet; `since` in seconds."""

    channel: bytes
    request: RequestId
    attempt: int
    quote: Amount
    since: float


@dataclass(frozen=True, slots=True)
class AddChannel:
    """A new channel.  Conflict if this end of it is there already."""

    channel: ChannelRow

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row = self.channel
        amounts = (row.balance, row.claimed, row.withdrawing, row.charged, row.ceiling)
        db.execute(
            "INSERT INTO channel (side, id, peer, config, balance, claimed, withdrawing, charged, ceiling,"
            " signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (row.side, row.id, row.peer, row.config, *map(pack_amount, amounts), row.signature),
        )
        if not db.changes():
            raise Conflict(f"The channel {row.id.hex()} is in the journal already.")


@dataclass(frozen=True, slots=True)
class RecordDeposit:
    """What the ledger says of a channel now.  `claimed` only grows."""

    side: Side
    id: bytes
    balance: Amount
    claimed: Amount
    withdrawing: Amount

    def apply(self, db: apsw.Connection) -> None:
        """Overwrite balance and withdrawal, raise what was claimed."""
        db.execute(
            "UPDATE channel SET balance = ?, claimed = max(claimed, ?), withdrawing = ?"
            " WHERE side = ? AND id = ?",
            (*map(pack_amount, (self.balance, self.claimed, self.withdrawing)), self.side, self.id),
        )
        _expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class RecordVoucher:
    """A checked voucher, given or received.  A lower one than the best changes nothing."""

    side: Side
    id: bytes
    ceiling: Amount
    signature: bytes

    def apply(self, db: apsw.Connection) -> None:
        """Keep the voucher with the higher ceiling."""
        ceiling = pack_amount(self.ceiling)
        db.execute(
            "UPDATE channel SET signature = CASE WHEN ?1 > ceiling THEN ?2 ELSE signature END,"
            " ceiling = max(ceiling, ?1) WHERE side = ?3 AND id = ?4",
            (ceiling, self.signature, self.side, self.id),
        )
        _expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class AdvanceCharge:
    """The provider's step from one sum of fees to the next.

    `before` must be what the journal has, else Conflict: an earlier charge of the channel was not
    written, and a receipt with this sum would be wrong.
    """

    id: bytes
    before: Amount
    after: Amount

    def apply(self, db: apsw.Connection) -> None:
        """Compare and set."""
        if self.after < self.before:
            raise Conflict("What a channel was charged never shrinks.")
        db.execute(
            "UPDATE channel SET charged = ? WHERE side = ? AND id = ? AND charged = ?",
            (pack_amount(self.after), Side.PROVIDER, self.id, pack_amount(self.before)),
        )
        if not db.changes():
            raise Conflict(f"The channel {self.id.hex()} was not charged {self.before} MESH before this.")


@dataclass(frozen=True, slots=True)
class RecordCharge:
    """The payer's knowledge of the sum of fees, from a checked receipt.  A lower one changes nothing."""

    id: bytes
    charged: Amount

    def apply(self, db: apsw.Connection) -> None:
        """Raise the sum."""
        db.execute(
            "UPDATE channel SET charged = max(charged, ?) WHERE side = ? AND id = ?",
            (pack_amount(self.charged), Side.PAYER, self.id),
        )
        _expect_channel(db, self.id)


@dataclass(frozen=True, slots=True)
class RemoveChannel:
    """A channel that the ledger has closed, with its reservations; one that is gone stays gone."""

    side: Side
    id: bytes

    def apply(self, db: apsw.Connection) -> None:
        """Delete the row."""
        db.execute("DELETE FROM channel WHERE side = ? AND id = ?", (self.side, self.id))
        if self.side is Side.PAYER:
            db.execute("DELETE FROM reservation WHERE channel = ?", (self.id,))


@dataclass(frozen=True, slots=True)
class Reserve:
    """Keep the quote of an attempt in doubt reserved over a restart; a second time changes nothing."""

    reservation: Reservation

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        row = self.reservation
        db.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (row.channel, row.request, row.attempt, pack_amount(row.quote), row.since),
        )


@dataclass(frozen=True, slots=True)
class ReleaseReservation:
    """The outcome of an attempt is known; one that was not reserved is fine."""

    channel: bytes
    request: RequestId
    attempt: int

    def apply(self, db: apsw.Connection) -> None:
        """Delete the row."""
        db.execute(
            "DELETE FROM reservation WHERE channel = ? AND request = ? AND attempt = ?",
            (self.channel, self.request, self.attempt),
        )


def find_channel(db: apsw.Connection, side: Side, channel: bytes) -> ChannelRow | None:
    """One end of a channel."""
    query = f"{_SELECT} WHERE side = ? AND id = ?"
    return next((_channel(row) for row in db.execute(query, (side, channel))), None)


def all_channels(db: apsw.Connection, side: Side) -> list[ChannelRow]:
    """All channels of which this node is that end, in the order of their ids."""
    query = f"{_SELECT} WHERE side = ? ORDER BY id"
    return [_channel(row) for row in db.execute(query, (side,))]


def reservations(db: apsw.Connection) -> list[Reservation]:
    """All attempts in doubt, the oldest first."""
    query = "SELECT channel, request, attempt, quote, since FROM reservation ORDER BY since"
    return [
        Reservation(channel, RequestId(request), attempt, read_amount(quote), since)
        for channel, request, attempt, quote, since in db.execute(query)
    ]


def _channel(row: tuple[Any, ...]) -> ChannelRow:
    side, channel, peer, config, *amounts, signature = row
    balance, claimed, withdrawing, charged, ceiling = map(read_amount, amounts)
    return ChannelRow(
        Side(side), channel, PeerId(peer), config, balance, claimed, withdrawing, charged, ceiling, signature
    )


def _expect_channel(db: apsw.Connection, channel: bytes) -> None:
    if not db.changes():
        raise Conflict(f"The channel {channel.hex()} is not in the journal.")
