"""Sending MESH to another account, by the owner's socket."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Protocol

from msgspec import Meta, Struct, json
from quart import Response

from llmesh.core.address import Address, address_text, recipient
from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.errors import InsufficientBalance, NotFound, TransactionFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import Mesh, decode, encode, mesh, parse_amount
from llmesh.gateway.wallet import Wallet

__all__ = ["Sender", "send_routes"]


class Sender(Protocol):
    """Who has money."""

    async def send(self, to: Address | PeerId, amount: Amount) -> Address:
        """Move some of it; to which account."""


class SendBody(Struct, forbid_unknown_fields=True):
    """How much is to be sent, to whom."""

    to: Annotated[str, Meta(description="An account (0x and 40 hex digits) or the peer id of a node.")]
    amount: Annotated[float | str, Meta(description="MESH.")]


class SentBody(Struct):
    """What was sent, and what is left to spend."""

    account: Annotated[str, Meta(description="The account that has it now.")]
    amount: Mesh
    balance: Mesh


def send_routes(sender: Sender, wallet: Wallet) -> tuple[Route, ...]:
    """The route of one sender; it needs a node that runs."""
    return (
        Route("POST", "/owner/send", Scope.OWNER, partial(post_send, sender, wallet),
              "Send MESH to another account.", answers=(SentBody,), body=SendBody,
              errors=(InsufficientBalance, NotFound, TransactionFailed)),
    )  # fmt: skip


async def post_send(sender: Sender, wallet: Wallet, request: Request) -> Response:
    """Send."""
    body = decode(await request.json_bytes(), _decode)
    amount = parse_amount(body.amount, "amount")
    account = await sender.send(recipient(body.to), amount)
    left = (await wallet.ledger.account(wallet.account)).balance
    told = SentBody(address_text(account), mesh(amount), mesh(left))
    return Response(encode(told), content_type="application/json")


_decode = json.Decoder(SendBody).decode
