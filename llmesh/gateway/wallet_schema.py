"""The JSON shapes of the wallet: what this node has, owes and is owed, and what one charge was for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Self

from msgspec import Meta, Struct

from llmesh.core.address import address_text
from llmesh.core.amount import Amount
from llmesh.core.evidence import Equivocation
from llmesh.gateway.schema import Mesh, mesh
from llmesh.journal.channels import ChannelRow, Reservation
from llmesh.journal.receipts import ReceiptRow, Spending
from llmesh.mesh.teller import Accusation, Sending

__all__ = [
    "AccusationBody",
    "ChannelBody",
    "ChargeBody",
    "DoubtBody",
    "ExplainQuery",
    "ExplanationBody",
    "SendingBody",
    "SpendingBody",
    "WalletBody",
    "WalletQuery",
]

_EPOCH = date(1970, 1, 1).toordinal()
_Day = Annotated[str, Meta(description="A day (UTC), as 2026-01-31.")]
_Time = Annotated[str, Meta(description="UTC, RFC 3339.")]
_Side = Annotated[str, Meta(description="payer or provider: which end this node is.")]
_Digest = Annotated[str, Meta(description="BLAKE3, in hex.")]


class WalletQuery(Struct, forbid_unknown_fields=True):
    """How far back spending is told."""

    days: Annotated[int, Meta(ge=1, le=3660, description="Days, today included.")] = 30


class ExplainQuery(Struct, forbid_unknown_fields=True):
    """Which request is meant."""

    id: Annotated[str, Meta(description="A request id.")]


class ChannelBody(Struct):
    """One channel: what its ledger entry holds, what was charged on it, what is in doubt."""

    id: str
    side: _Side
    peer: str
    deposit: Mesh
    charged: Annotated[Mesh, Meta(description="Fees so far.")]
    claimed: Annotated[Mesh, Meta(description="Of these, what the provider has claimed on the ledger.")]
    withdrawing: Mesh
    unknown: Annotated[Mesh, Meta(description="Held for attempts whose outcome is not known yet.")]
    broken: Annotated[str, Meta(description="Why nothing more is authorised on it; empty if it is well.")]

    @classmethod
    def of(cls, row: ChannelRow, unknown: Amount) -> Self:
        deposit = row.deposit
        return cls(
            id=row.id.hex(),
            side=str(row.side),
            peer=row.peer,
            deposit=mesh(deposit.balance),
            charged=mesh(row.charged),
            claimed=mesh(deposit.claimed),
            withdrawing=mesh(deposit.withdrawing),
            unknown=mesh(unknown),
            broken=row.broken,
        )


class SpendingBody(Struct):
    """Fees of one model on one day."""

    day: _Day
    model_id: str
    model: Annotated[str, Meta(description="Its name, where an offer of it is known now.")]
    fees: Mesh
    count: Annotated[int, Meta(description="Answers, free ones too.")]

    @classmethod
    def of(cls, row: Spending, name: str) -> Self:
        day = date.fromordinal(_EPOCH + row.day).isoformat()
        return cls(day, row.model, name, mesh(row.fees), row.count)


class AccusationBody(Struct):
    """Evidence by which this node has the ledger take a provider's stake."""

    provider: Annotated[str, Meta(description="The account of the provider that cheated.")]
    offence: Annotated[str, Meta(description="equivocation or overcharge.")]
    request_id: str
    attempt: int
    since: _Time
    state: Annotated[str, Meta(description="waiting for the ledger, done, or dead if it was refused.")]
    refused: Annotated[str, Meta(description="Why the ledger would not have it.")]

    @classmethod
    def of(cls, row: Accusation) -> Self:
        evidence = row.evidence
        receipt = (evidence.first if isinstance(evidence, Equivocation) else evidence.receipt).receipt
        return cls(
            provider=address_text(receipt.provider),
            offence=type(evidence).__name__.lower(),
            request_id=receipt.attempt.request,
            attempt=receipt.attempt.number,
            since=_time(row.since),
            state=str(row.state),
            refused=row.refused,
        )


class SendingBody(Struct):
    """Money that this node has sent to another account."""

    account: Annotated[str, Meta(description="Whose it is now.")]
    amount: Mesh
    since: _Time
    state: Annotated[str, Meta(description="waiting for the ledger, done, or dead if it was refused.")]
    refused: Annotated[str, Meta(description="Why the ledger has not taken it, or not yet.")]

    @classmethod
    def of(cls, row: Sending) -> Self:
        to, amount = row.transfer.to, row.transfer.amount
        return cls(address_text(to), mesh(amount), _time(row.since), str(row.state), row.refused)


class WalletBody(Struct):
    """What the node's account has on the ledger, and its channels and fees from the journal."""

    account: Annotated[str, Meta(description="The address of this node's account.")]
    chain: int
    balance: Mesh
    stake: Mesh
    unbonding: Mesh
    free_at: Annotated[int, Meta(description="Ledger time when `unbonding` is free; 0 if nothing is.")]
    earned: Annotated[Mesh, Meta(description="All that this node has claimed for its work.")]
    unknown: Annotated[Mesh, Meta(description="Held for attempts whose outcome is not known yet.")]
    channels: Sequence[ChannelBody]
    spending: Sequence[SpendingBody]
    earnings: Sequence[SpendingBody]
    sent: Annotated[Sequence[SendingBody], Meta(description="To other accounts, the latest first.")]
    accused: Annotated[
        Sequence[AccusationBody], Meta(description="Providers that were caught cheating, the latest first.")
    ]


class ChargeBody(Struct):
    """What one receipt says; `genuine` is whether its provider signed it for this node's ledger."""

    request_id: str
    attempt: int
    side: _Side
    peer: str
    provider: Annotated[str, Meta(description="The account that signed it.")]
    model_id: str
    model: str
    execution: str
    price: Mesh
    channel: Annotated[str, Meta(description="Empty for free work.")]
    sequence: int
    cumulative: Annotated[Mesh, Meta(description="All that was charged on the channel by then.")]
    issued: _Time
    offer: str
    input_digest: _Digest
    output_digest: _Digest
    genuine: bool

    @classmethod
    def of(cls, row: ReceiptRow, name: str, genuine: bool) -> Self:
        receipt, work, charge = row.signed.receipt, row.signed.receipt.work, row.signed.charge
        return cls(
            request_id=receipt.attempt.request,
            attempt=receipt.attempt.number,
            side=str(row.side),
            peer=row.peer,
            provider=address_text(receipt.provider),
            model_id=work.model,
            model=name,
            execution=work.execution_class,
            price=mesh(charge.price),
            channel=charge.channel.hex() if any(charge.channel) else "",
            sequence=charge.sequence,
            cumulative=mesh(charge.cumulative),
            issued=_time(receipt.issued_at),
            offer=receipt.offer.hex() if any(receipt.offer) else "",
            input_digest=work.input_digest.hex(),
            output_digest=work.output_digest.hex(),
            genuine=genuine,
        )


class DoubtBody(Struct):
    """An attempt whose outcome is not known yet: it may still come to cost its quote."""

    attempt: int
    channel: str
    quote: Mesh
    since: _Time

    @classmethod
    def of(cls, row: Reservation) -> Self:
        return cls(row.attempt.number, row.channel.hex(), mesh(row.quote), _time(row.since))


class ExplanationBody(Struct):
    """Everything this node knows of what one request cost."""

    request_id: str
    charges: Sequence[ChargeBody]
    unknown: Sequence[DoubtBody]


def _time(seconds: float) -> str:
    latest = datetime.max.replace(tzinfo=UTC).timestamp() - 1  # a provider may have written any number
    return datetime.fromtimestamp(min(int(seconds), latest), UTC).isoformat().replace("+00:00", "Z")
