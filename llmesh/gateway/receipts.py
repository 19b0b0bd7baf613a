"""GET /api/v1/receipts/{id}: what providers signed for a request, to be checked by anyone offline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from msgspec import Meta, Struct
from quart import Response

from llmesh.core.address import address_text
from llmesh.core.ids import RequestId, request_id
from llmesh.core.receipt import receipt_digest
from llmesh.core.typed import Chain
from llmesh.errors import NotFound, TransactionFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import encode
from llmesh.gateway.wallet import Wallet, charge_body, no_receipt
from llmesh.gateway.wallet_schema import ChargeBody
from llmesh.journal.receipts import ReceiptRow, receipts_of

__all__ = ["receipts_routes"]


class ChainBody(Struct):
    """The ledger that the signatures count on."""

    id: int
    contract: str


class ReceiptBody(Struct):
    """One receipt: what it says, and the signed bytes that say it."""

    id: Annotated[str, Meta(description="The digest that was signed, in hex.")]
    charge: ChargeBody
    signed: Annotated[str, Meta(description="The receipt as signed, packed, in hex.")]


class ReceiptsBody(Struct):
    """The receipts of one request, one for each attempt that has one."""

    request_id: str
    chain: ChainBody
    receipts: Sequence[ReceiptBody]


def receipts_routes(wallet: Wallet) -> tuple[Route, ...]:
    """The route of receipts."""
    id = {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The request_id of an answer."}
    return (
        Route("GET", "/api/v1/receipts/{id}", Scope.READ, partial(get_receipts, wallet),
              "What providers signed for a request.", answers=(ReceiptsBody,), variables={"id": id},
              errors=(NotFound, TransactionFailed)),
    )  # fmt: skip


async def get_receipts(wallet: Wallet, request: Request) -> Response:
    """Tell the receipts of a request; who knows its id may see them."""
    id = request_id(request.variable("id"))
    await wallet.catch_up()
    rows = await wallet.journal.read(receipts_of, id)
    if not rows:
        raise no_receipt(id)
    return Response(encode(_render(wallet, id, rows)), content_type="application/json")


def _render(wallet: Wallet, id: RequestId, rows: Sequence[ReceiptRow]) -> ReceiptsBody:
    chain = wallet.ledger.chain
    receipts = [
        ReceiptBody(
            receipt_digest(row.signed.receipt, chain).hex(), charge_body(wallet, row), row.signed.packed.hex()
        )
        for row in rows
    ]
    return ReceiptsBody(id, _chain(chain), receipts)


def _chain(chain: Chain) -> ChainBody:
    return ChainBody(chain.id, address_text(chain.contract))
