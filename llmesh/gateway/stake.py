"""Taking a stake out, by the owner's socket: first it stops counting, later it is free."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Protocol

from msgspec import Meta, Struct, json
from quart import Response

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, InsufficientStake, NodeUnreachable, TransactionFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import Mesh, decode, encode, mesh, parse_amount
from llmesh.gateway.wallet import Wallet

__all__ = ["Staking", "stake_routes"]


class Staking(Protocol):
    """Who has a stake."""

    async def unbond(self, amount: Amount) -> None:
        """Stop a part of it from counting."""

    async def withdraw_stake(self) -> None:
        """Put what is free again into the balance."""


class UnbondBody(Struct, forbid_unknown_fields=True):
    """How much is to be taken out."""

    amount: Annotated[float | str, Meta(description="MESH.")]


class StakeBody(Struct):
    """What is bonded, what is on its way out, and what may be spent."""

    stake: Mesh
    unbonding: Mesh
    free_at: Annotated[int, Meta(description="When the unbonding is free, in seconds of the ledger's time.")]
    balance: Mesh


def stake_routes(staking: Staking, wallet: Wallet) -> tuple[Route, ...]:
    """The routes of one stake; they need a node that runs."""
    return (
        Route("POST", "/owner/unbond", Scope.OWNER, partial(post_unbond, staking, wallet),
              "Stop a part of the stake from counting.", answers=(StakeBody,), body=UnbondBody,
              errors=(InsufficientStake, TransactionFailed, NodeUnreachable)),
        Route("POST", "/owner/withdraw", Scope.OWNER, partial(post_withdraw, staking, wallet),
              "Put what was unbonded back into the balance.", answers=(StakeBody,),
              errors=(Conflict, TransactionFailed, NodeUnreachable)),
    )  # fmt: skip


async def post_unbond(staking: Staking, wallet: Wallet, request: Request) -> Response:
    """Unbond."""
    body = decode(await request.json_bytes(), _decode)
    await staking.unbond(parse_amount(body.amount, "amount"))
    return await _told(wallet)


async def post_withdraw(staking: Staking, wallet: Wallet, request: Request) -> Response:
    """Withdraw."""
    await staking.withdraw_stake()
    return await _told(wallet)


async def _told(wallet: Wallet) -> Response:
    account = await wallet.ledger.account(wallet.account)
    body = StakeBody(mesh(account.stake), mesh(account.unbonding), account.free_at, mesh(account.balance))
    return Response(encode(body), content_type="application/json")


_decode = json.Decoder(UnbondBody).decode
