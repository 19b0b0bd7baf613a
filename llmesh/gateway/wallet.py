"""The wallet: the account on the ledger, channels, fees, and what each was for.

All of it is on the owner's socket.  How the money stands is told over the network as well, to the owner
and to keys that were given the scope `wallet`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec
from quart import Response

from llmesh.core.address import Address, address_text
from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, RequestId, request_id
from llmesh.core.receipt import SignedReceipt, check_receipt
from llmesh.core.typed import Chain
from llmesh.errors import NotFound, TransactionFailed, ValidationFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode_query, encode, mesh
from llmesh.gateway.wallet_schema import (
    AccusationBody,
    ChannelBody,
    ChargeBody,
    DoubtBody,
    ExplainQuery,
    ExplanationBody,
    SendingBody,
    SpendingBody,
    WalletBody,
    WalletQuery,
)
from llmesh.journal.channels import Reservation, all_channels, reservations
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.journal.receipts import ReceiptRow, receipts_of, spending
from llmesh.ledger.ledger import Ledger
from llmesh.mesh.teller import accusations, sendings

__all__ = ["Wallet", "charge_body", "no_receipt", "wallet_route", "wallet_routes"]

MOST_ACCUSED = 100
"""The most providers that cheated of which the wallet tells."""
MOST_SENT = 100
"""The most sendings of which it tells."""
_DAY = 86_400


async def _nothing_waits() -> None:
    """All is written down already."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """Where one node's money is written down; `names` tells a model's name if an offer of it is known.

    `catch_up` writes down what waits for it, such as the receipt of the answer that was given just now.
    """

    journal: Journal
    ledger: Ledger
    account: Address
    names: Callable[[ModelId], str]
    catch_up: Callable[[], Awaitable[None]] = _nothing_waits


def wallet_route(wallet: Wallet, path: str = "/api/v1/wallet", scope: Scope = Scope.WALLET) -> Route:
    """Where it is told how the money stands."""
    return Route("GET", path, scope, partial(get_wallet, wallet), "Balance, stake, channels, fees.",
                 answers=(WalletBody,), query=WalletQuery, errors=(TransactionFailed,))  # fmt: skip


def wallet_routes(wallet: Wallet) -> tuple[Route, ...]:
    """The owner's routes of one wallet."""
    return (
        wallet_route(wallet, "/owner/wallet", Scope.OWNER),
        Route("GET", "/owner/explain", Scope.OWNER, partial(get_explanation, wallet),
              "What one request's charge was for.", answers=(ExplanationBody,), query=ExplainQuery,
              errors=(NotFound, TransactionFailed)),
    )  # fmt: skip


async def get_wallet(wallet: Wallet, request: Request) -> Response:
    """Tell how the money stands."""
    days = decode_query(request.query_string, WalletQuery).days
    await wallet.catch_up()
    account = await wallet.ledger.account(wallet.account)
    doubts = await wallet.journal.read(reservations)
    since = (time.time() // _DAY - (days - 1)) * _DAY
    return _json(
        WalletBody(
            account=address_text(wallet.account),
            chain=wallet.ledger.chain.id,
            balance=mesh(account.balance),
            stake=mesh(account.stake),
            unbonding=mesh(account.unbonding),
            free_at=account.free_at,
            earned=mesh(account.claimed),
            unknown=mesh(_held(doubts)),
            channels=await _channels(wallet, doubts),
            spending=await _fees(wallet, Side.PAYER, since),
            earnings=await _fees(wallet, Side.PROVIDER, since),
            sent=await _sent(wallet),
            accused=await _accused(wallet),
        )
    )


async def get_explanation(wallet: Wallet, request: Request) -> Response:
    """Tell what a request cost, and why.  Raises NotFound for one that nothing is known of."""
    id = request_id(decode_query(request.query_string, ExplainQuery).id)
    await wallet.catch_up()
    rows = await wallet.journal.read(receipts_of, id)
    doubts = [row for row in await wallet.journal.read(reservations) if row.attempt.request == id]
    if not rows and not doubts:
        raise no_receipt(id)
    charges = [charge_body(wallet, row) for row in rows]
    return _json(ExplanationBody(id, charges, [DoubtBody.of(row) for row in doubts]))


def no_receipt(id: RequestId) -> NotFound:
    """What to say of a request that nothing is kept of."""
    return NotFound(
        f"This node has kept no receipt of a request {id}: it cost nothing, or another node was asked."
    )


def charge_body(wallet: Wallet, row: ReceiptRow) -> ChargeBody:
    """What a receipt says, and whether it is genuine."""
    name = wallet.names(row.signed.receipt.work.model)
    return ChargeBody.of(row, name, _is_genuine(row.signed, wallet.ledger.chain))


async def _channels(wallet: Wallet, doubts: list[Reservation]) -> list[ChannelBody]:
    """Those that this node pays on, then those that it is paid on."""
    return [
        ChannelBody.of(
            row, _held(doubt for doubt in doubts if side is Side.PAYER and doubt.channel == row.id)
        )
        for side in (Side.PAYER, Side.PROVIDER)
        for row in await wallet.journal.read(all_channels, side)
    ]


async def _fees(wallet: Wallet, side: Side, since: float) -> list[SpendingBody]:
    rows = await wallet.journal.read(spending, side, since)
    return [SpendingBody.of(row, wallet.names(row.model)) for row in rows]


async def _sent(wallet: Wallet) -> list[SendingBody]:
    rows = await sendings(wallet.journal, wallet.ledger.chain, wallet.account, MOST_SENT)
    return [SendingBody.of(row) for row in rows]


async def _accused(wallet: Wallet) -> list[AccusationBody]:
    rows = await accusations(wallet.journal, wallet.ledger.chain, wallet.account, MOST_ACCUSED)
    return [AccusationBody.of(row) for row in rows]


def _held(doubts: Iterable[Reservation]) -> Amount:
    return Amount(sum(doubt.quote.micro for doubt in doubts))


def _is_genuine(signed: SignedReceipt, chain: Chain) -> bool:
    try:
        check_receipt(signed, chain)
    except ValidationFailed:
        return False
    return True


def _json(body: msgspec.Struct) -> Response:
    return Response(encode(body), content_type="application/json")
