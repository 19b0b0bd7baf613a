"""Charge: fee, voucher and receipt of one served attempt, durable together or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from llmesh.core.amount import Amount
from llmesh.errors import Conflict
from llmesh.journal.channels import AdvanceCharge, RecordVoucher
from llmesh.journal.columns import Side
from llmesh.journal.receipts import ReceiptRow, StoreReceipt

__all__ = ["Charge"]


@dataclass(frozen=True, slots=True)
class Charge:
    """What a provider commits before the answer's end leaves.

    `before` is the channel's sum of fees that the receipt builds on, `ceiling` and `signature` the
    best voucher known.  Conflict, and nothing is changed, if the attempt has its receipt already or
    the channel's sum is another.
    """

    receipt: ReceiptRow
    before: Amount
    ceiling: Amount
    signature: bytes

    def apply(self, db: apsw.Connection) -> None:
        """All three changes."""
        channel = self.receipt.channel
        if channel is None or self.receipt.side is not Side.PROVIDER:
            raise Conflict("A charge is a provider's, on a channel.")
        StoreReceipt(self.receipt).apply(db)
        AdvanceCharge(channel, self.before, self.before + self.receipt.fee).apply(db)
        RecordVoucher(Side.PROVIDER, channel, self.ceiling, self.signature).apply(db)
