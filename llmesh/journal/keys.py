"""Keys: credentials of callers, kept only as keyed digests, with what each of them may do.

The key itself is 256 random bits, shown to its owner once; a digest without the node's secret
tells nothing about it, and a fast one is enough for a secret that nobody can guess.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, ValidationFailed
from llmesh.journal.columns import pack_amount, read_amount

__all__ = ["AddKey", "KeyRow", "RevokeKey", "all_keys", "digest_key", "find_key"]

_SELECT = "SELECT id, digest, label, scopes, created, expires, revoked, daily_budget FROM key"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key: `id` names it in listings, `digest` is of the secret.

    Times in seconds; `expires` and `revoked` are None where it does not or was not.  Without a
    `daily_budget` it spends nothing that is limited by one.  ValidationFailed for a scope with a space.
    """

    id: str
    digest: bytes
    label: str
    scopes: frozenset[str]
    created: float
    expires: float | None = None
    revoked: float | None = None
    daily_budget: Amount | None = None

    def __post_init__(self) -> None:
        if any(not scope or scope.split() != [scope] for scope in self.scopes):
            raise ValidationFailed("A scope is one word.")

    def is_valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


@dataclass(frozen=True, slots=True)
class AddKey:
    """A new key.  Conflict if its id or its secret is taken."""

    key: KeyRow

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        key = self.key
        budget = None if key.daily_budget is None else pack_amount(key.daily_budget)
        db.execute(
            "INSERT INTO key (id, digest, label, scopes, created, expires, revoked, daily_budget)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                key.id, key.digest, key.label, " ".join(sorted(key.scopes)),
                key.created, key.expires, key.revoked, budget,
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(f"There is a key {key.id} already.")


@dataclass(frozen=True, slots=True)
class RevokeKey:
    """The key is good for nothing from now on; the first time counts.  Conflict for an unknown one."""

    id: str
    at: float

    def apply(self, db: apsw.Connection) -> None:
        """Set the time."""
        db.execute("UPDATE key SET revoked = coalesce(revoked, ?) WHERE id = ?", (self.at, self.id))
        if not db.changes():
            raise Conflict(f"There is no key {self.id}.")


def digest_key(secret: bytes, key: str) -> bytes:
    """32 bytes of BLAKE2b (RFC 7693) over the key as its owner has it, keyed with the node's secret."""
    return hashlib.blake2b(key.encode(), key=secret, digest_size=32, person=b"llmesh key").digest()


def find_key(db: apsw.Connection, digest: bytes) -> KeyRow | None:
    """The key of that digest, valid or not."""
    rows = db.execute(f"{_SELECT} WHERE digest = ?", (digest,))
    return next(map(_key, rows), None)


def all_keys(db: apsw.Connection) -> list[KeyRow]:
    """All keys, the oldest first."""
    return [_key(row) for row in db.execute(f"{_SELECT} ORDER BY created, id")]


def _key(row: tuple[Any, ...]) -> KeyRow:
    name, digest, label, scopes, created, expires, revoked, budget = row
    limit = None if budget is None else read_amount(budget)
    return KeyRow(name, digest, label, frozenset(scopes.split()), created, expires, revoked, limit)
