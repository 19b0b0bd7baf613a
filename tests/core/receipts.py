"""A receipt for tests that only pass it on."""

from __future__ import annotations

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, SignedReceipt, Work
from llmesh.core.voucher import ChannelId

WORK = Work(ModelId("a" * 64), "fp16", bytes(32), bytes(32))


def costing(price: int) -> SignedReceipt:
    """One that nobody has signed."""
    charge = Charge(ChannelId(bytes(32)), 0, Amount(price), Amount(price))
    attempt = AttemptId(RequestId("0" * 32), 1)
    return SignedReceipt(Receipt(Address(bytes(20)), attempt, NO_OFFER, WORK, charge, 0), bytes(65))
