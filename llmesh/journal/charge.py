"""Charge, voucher and receipt of one served attempt: durable together or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.core.receipt import SignedReceipt
from llmesh.core.voucher import SignedVoucher
from llmesh.errors import Conflict
from llmesh.journal.columns import Side, pack_amount
from llmesh.journal.receipts import ReceiptRow, StoreReceipt

__all__ = ["RecordCharge"]


@dataclass(frozen=True, slots=True)
class RecordCharge:
    """What a provider commits before the end of an answer leaves.

    `best` is the best voucher known of the channel that the receipt charges.  Conflict, and nothing
    is changed, if the attempt has its receipt already, or if the channel's sum is not the one that
    the receipt builds on: an earlier charge was not written, and this one must be signed anew.
    """

    peer: PeerId
    receipt: SignedReceipt
    best: SignedVoucher
    output: bytes | None = None

    def apply(self, db: apsw.Connection) -> None:
        """Insert the receipt; then compare and set the channel's sum, its voucher and last receipt."""
        StoreReceipt(ReceiptRow(Side.PROVIDER, self.peer, self.receipt, self.output)).apply(db)
        charge = self.receipt.charge
        before = Amount(charge.cumulative.micro - charge.price.micro)
        db.execute(
            "UPDATE channel SET charged = ?, best = max(best, ?), last = ?"
            " WHERE side = 'provider' AND id = ? AND charged = ?",
            (
                pack_amount(charge.cumulative), self.best.packed, self.receipt.packed,
                charge.channel, pack_amount(before),
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(f"The channel {charge.channel.hex()} was not charged {before} MESH before this.")
