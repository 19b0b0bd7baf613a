"""The JSON shapes of the owner's socket."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Self

import msgspec
from msgspec import Meta, Struct

from llmesh.core.amount import Amount
from llmesh.errors import ValidationFailed
from llmesh.gateway.callers import GRANTS, Scope
from llmesh.gateway.schema import Mesh, mesh, parse_amount
from llmesh.journal.keys import KeyRow

__all__ = [
    "BackupBody",
    "InviteBody",
    "KeyBody",
    "KeysBody",
    "NewInviteBody",
    "NewKeyBody",
    "RevokedBody",
    "SavedBody",
    "decode_backup",
    "decode_new_invite",
    "decode_new_key",
    "decode_revoked",
]

_MOST_SECONDS = 10 * 365 * 86_400
_Time = Annotated[str, Meta(description="UTC, RFC 3339.")]


class NewKeyBody(Struct, forbid_unknown_fields=True):
    """A key to make."""

    name: str
    budget: Annotated[
        float | str | None, Meta(description="MESH a day (UTC); null sets no limit, 0 is free models only.")
    ] = 0.0
    scopes: Sequence[str] = ("inference",)
    lifetime: Annotated[float, Meta(gt=0, le=_MOST_SECONDS, description="Seconds.")] | None = None

    @property
    def limit(self) -> Amount | None:
        """`budget` as money.  Raises ValidationFailed."""
        return None if self.budget is None else parse_amount(self.budget, "budget")

    @property
    def grants(self) -> frozenset[Scope]:
        """What the key may do; reading comes with every key.  Raises ValidationFailed."""
        known = {str(scope): scope for scope in GRANTS}
        wrong = sorted(set(self.scopes) - known.keys())
        if wrong:
            raise ValidationFailed(
                f"There is no scope {wrong[0][:40]!r}; they are {', '.join(sorted(known))}."
            )
        return frozenset(known[word] for word in self.scopes) | {Scope.READ}


class RevokedBody(Struct, forbid_unknown_fields=True):
    """A key to revoke, by id or name."""

    key: str


class KeyBody(Struct, omit_defaults=True):
    """A key: what it may do, and what it may spend; `key` is its text, in the answer that makes it only."""

    id: str
    name: str
    scopes: Sequence[str]
    created: _Time
    in_force: bool
    expires: _Time | None = None
    revoked: _Time | None = None
    budget: Annotated[Mesh | None, Meta(description="MESH a day; absent where there is no limit.")] = None
    left: Annotated[Mesh | None, Meta(description="MESH left of today's budget.")] = None
    key: str | None = None

    @classmethod
    def of(cls, row: KeyRow, left: Amount | None, now: float, text: str | None = None) -> Self:
        return cls(
            id=row.id,
            name=row.label,
            scopes=sorted(row.scopes),
            created=_time(row.created),
            in_force=row.is_valid(now),
            expires=None if row.expires is None else _time(row.expires),
            revoked=None if row.revoked is None else _time(row.revoked),
            budget=None if row.daily_budget is None else mesh(row.daily_budget),
            left=None if left is None else mesh(left),
            key=text,
        )


class KeysBody(Struct):
    """Every key that was ever made, the oldest first."""

    keys: Sequence[KeyBody]


class BackupBody(Struct, forbid_unknown_fields=True):
    """A folder to write a backup to."""

    path: Annotated[str, Meta(min_length=1, description="An absolute path on the node's machine.")]


class SavedBody(Struct):
    """What a backup holds."""

    path: str
    files: Sequence[str]


class NewInviteBody(Struct, forbid_unknown_fields=True):
    """An invite to make."""

    credit: Annotated[float | str, Meta(description="MESH for whoever joins by it; 0 for none.")] = 0.0
    lifetime: Annotated[float, Meta(ge=1, le=_MOST_SECONDS, description="Seconds.")] = 7 * 86_400.0

    @property
    def amount(self) -> Amount:
        """`credit` as money.  Raises ValidationFailed."""
        return parse_amount(self.credit, "credit")


class InviteBody(Struct):
    """An invite: whoever has the line may join by it, and take its credit, once."""

    invite: str


decode_new_invite = msgspec.json.Decoder(NewInviteBody).decode
decode_new_key = msgspec.json.Decoder(NewKeyBody).decode
decode_revoked = msgspec.json.Decoder(RevokedBody).decode
decode_backup = msgspec.json.Decoder(BackupBody).decode


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
