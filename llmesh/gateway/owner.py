"""What only the node's owner may ask, by the owner's socket: keys, backups, the wallet."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
from quart import Response

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, InsufficientBalance, NotFound, TransactionFailed, ValidationFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.keys import Keys
from llmesh.gateway.openapi import Route
from llmesh.gateway.owner_schema import (
    BackupBody,
    InviteBody,
    KeyBody,
    KeysBody,
    NewInviteBody,
    NewKeyBody,
    RevokedBody,
    SavedBody,
    decode_backup,
    decode_new_invite,
    decode_new_key,
    decode_revoked,
)
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, encode
from llmesh.gateway.wallet import Wallet, wallet_routes
from llmesh.journal.keys import KeyRow

__all__ = ["BackUp", "Inviting", "owner_routes", "swarm_routes"]

Inviting: TypeAlias = Callable[[Amount, float], Awaitable[str]]
"""Makes an invite, with a credit that may be nothing, which is good for so many seconds."""
BackUp: TypeAlias = Callable[[Path], Awaitable[Sequence[str]]]
"""Writes a backup into a folder and tells the names of its files."""


def owner_routes(keys: Keys, back_up: BackUp, wallet: Wallet) -> tuple[Route, ...]:
    """The routes that are on the owner's socket only."""
    return (
        *wallet_routes(wallet),
        Route("GET", "/owner/keys", Scope.OWNER, partial(get_keys, keys),
              "Every key of this gateway.", answers=(KeysBody,)),
        Route("POST", "/owner/keys", Scope.OWNER, partial(post_key, keys),
              "Make a key; its text is shown this once.", answers=(KeyBody,), body=NewKeyBody,
              errors=(Conflict, TransactionFailed)),
        Route("POST", "/owner/keys/revoke", Scope.OWNER, partial(post_revoked, keys),
              "Make a key good for nothing from now on.", answers=(KeyBody,), body=RevokedBody,
              errors=(Conflict, NotFound, TransactionFailed)),
        Route("POST", "/owner/backup", Scope.OWNER, partial(post_backup, back_up),
              "Write a backup of keys, journal and ledger into a folder.", answers=(SavedBody,),
              body=BackupBody, errors=(Conflict, TransactionFailed)),
    )  # fmt: skip


def swarm_routes(invite: Inviting) -> tuple[Route, ...]:
    """The routes about a swarm; they need a node that runs."""
    return (
        Route("POST", "/owner/invite", Scope.OWNER, partial(post_invite, invite),
              "Make an invite to this node's swarm.", answers=(InviteBody,), body=NewInviteBody,
              errors=(Conflict, InsufficientBalance)),
    )  # fmt: skip


async def post_invite(invite: Inviting, request: Request) -> Response:
    """Make an invite."""
    body = decode(await request.json_bytes(), decode_new_invite)
    return _json(InviteBody(await invite(body.amount, body.lifetime)))


async def get_keys(keys: Keys, request: Request) -> Response:
    """List the keys."""
    return _json(KeysBody([_told(keys, row) for row in keys.rows]))


async def post_key(keys: Keys, request: Request) -> Response:
    """Make a key."""
    body = decode(await request.json_bytes(), decode_new_key)
    row, text = await keys.create(body.name, body.grants, body.limit, body.lifetime)
    return _json(_told(keys, row, text))


async def post_revoked(keys: Keys, request: Request) -> Response:
    """Revoke a key."""
    body = decode(await request.json_bytes(), decode_revoked)
    return _json(_told(keys, await keys.revoke(body.key)))


async def post_backup(back_up: BackUp, request: Request) -> Response:
    """Write a backup."""
    path = Path(decode(await request.json_bytes(), decode_backup).path)
    if not path.is_absolute():
        raise ValidationFailed("The path of a backup is absolute.")
    return _json(SavedBody(str(path), await back_up(path)))


def _told(keys: Keys, row: KeyRow, text: str | None = None) -> KeyBody:
    purse = keys.purse(row)
    return KeyBody.of(row, purse.left if purse else None, time.time(), text)


def _json(body: msgspec.Struct) -> Response:
    return Response(encode(body), content_type="application/json")
