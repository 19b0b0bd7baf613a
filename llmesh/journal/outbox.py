"""Outbox: intents that are durable before they are tried, and tried until they are done or dead.

Settlement's transactions carry a nonce of their account, given once: after a crash the same intent
is sent again with the same nonce, never a second one.  Webhooks have none.  The trying is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import apsw

from llmesh.errors import Conflict

__all__ = [
    "AddIntent",
    "BuryIntent",
    "CompleteIntent",
    "DelayIntent",
    "ForgetIntents",
    "Intent",
    "IntentState",
    "ReviveIntent",
    "dead_intents",
    "due_intents",
    "find_intent",
    "intents_of",
    "intents_with",
    "next_nonce",
    "next_times",
    "waiting_intents",
]

_SELECT = (
    "SELECT id, kind, account, nonce, body, created, next_time, state, attempts, last_error, reference"
    " FROM intent"
)
FORGOTTEN_AT_ONCE = 500
"""Rows that one commit forgets."""


class IntentState(StrEnum):
    """What has become of an intent."""

    WAITING = "waiting"
    DONE = "done"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Intent:
    """Something to be sent: `id` makes it one and the same, `body` is what its `kind` understands.

    `nonce` is the place in the account's order, None where there is none.  Times in seconds;
    `reference` is what the last sending is known by, such as a transaction's hash.
    """

    id: str
    kind: str
    account: str
    nonce: int | None
    body: bytes
    created: float
    next_time: float
    state: IntentState = IntentState.WAITING
    attempts: int = 0
    last_error: str = ""
    reference: bytes = b""


@dataclass(frozen=True, slots=True)
class AddIntent:
    """A new intent; the same one a second time changes nothing.

    Conflict if the id is taken by another, or the nonce is not the account's next one.
    """

    intent: Intent

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row and move the account's nonce on."""
        new = self.intent
        there = find_intent(db, new.id)
        if there is not None:
            if (there.kind, there.account, there.nonce, there.body) != (
                new.kind, new.account, new.nonce, new.body,
            ):  # fmt: skip
                raise Conflict(f"The intent {new.id} is another one already.")
            return
        if new.nonce is not None:
            _take_nonce(db, new.account, new.nonce)
        db.execute(
            "INSERT INTO intent (id, kind, account, nonce, body, created, next_time, state, attempts,"
            " last_error, reference) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new.id, new.kind, new.account, new.nonce, new.body, new.created, new.next_time,
                new.state, new.attempts, new.last_error, new.reference,
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DelayIntent:
    """It was tried and goes on waiting: for its confirmation, or for the next try after an error."""

    id: str
    next_time: float
    error: str = ""
    reference: bytes = b""

    def apply(self, db: apsw.Connection) -> None:
        """Count the attempt; an empty reference leaves the last one."""
        db.execute(
            "UPDATE intent SET attempts = attempts + 1, next_time = ?, last_error = ?,"
            " reference = CASE WHEN ?3 = x'' THEN reference ELSE ?3 END WHERE id = ?4 AND state = 'waiting'",
            (self.next_time, self.error, self.reference, self.id),
        )
        _expect_intent(db, self.id)


@dataclass(frozen=True, slots=True)
class CompleteIntent:
    """It has arrived; saying so again changes nothing."""

    id: str

    def apply(self, db: apsw.Connection) -> None:
        """Count the attempt and set the state."""
        db.execute(
            "UPDATE intent SET attempts = attempts + (state = 'waiting'), state = 'done', last_error = ''"
            " WHERE id = ?",
            (self.id,),
        )
        _expect_intent(db, self.id)


@dataclass(frozen=True, slots=True)
class BuryIntent:
    """It is given up: a dead letter, kept for people to look at.  Conflict unless it waits."""

    id: str
    error: str

    def apply(self, db: apsw.Connection) -> None:
        """Count the attempt and set the state."""
        db.execute(
            "UPDATE intent SET attempts = attempts + 1, state = 'dead', last_error = ?"
            " WHERE id = ? AND state = 'waiting'",
            (self.error, self.id),
        )
        _expect_intent(db, self.id)


@dataclass(frozen=True, slots=True)
class ReviveIntent:
    """A dead letter is to be tried again, as the same intent.  Conflict unless it is dead."""

    id: str
    next_time: float

    def apply(self, db: apsw.Connection) -> None:
        """Set the state back."""
        db.execute(
            "UPDATE intent SET state = 'waiting', attempts = 0, next_time = ?"
            " WHERE id = ? AND state = 'dead'",
            (self.next_time, self.id),
        )
        _expect_intent(db, self.id)


@dataclass(frozen=True, slots=True)
class ForgetIntents:
    """Drop what is done or dead and was made before a time, at most `FORGOTTEN_AT_ONCE`.

    Nonces stay taken.
    """

    before: float

    def apply(self, db: apsw.Connection) -> None:
        """Delete the rows."""
        db.execute(
            "DELETE FROM intent WHERE id IN (SELECT id FROM intent"
            " WHERE state <> 'waiting' AND created < ? ORDER BY created LIMIT ?)",
            (self.before, FORGOTTEN_AT_ONCE),
        )


def find_intent(db: apsw.Connection, name: str) -> Intent | None:
    """The intent of that id, in whatever state."""
    return next(map(_intent, db.execute(f"{_SELECT} WHERE id = ?", (name,))), None)


def due_intents(db: apsw.Connection, kind: str, account: str, now: float, limit: int) -> list[Intent]:
    """What waits of an account and whose time has come: by time, then by nonce."""
    query = (
        f"{_SELECT} WHERE state = 'waiting' AND kind = ? AND account = ? AND next_time <= ?"
        " ORDER BY next_time, nonce, id LIMIT ?"
    )
    return [_intent(row) for row in db.execute(query, (kind, account, now, limit))]


def waiting_intents(db: apsw.Connection, kind: str, account: str) -> list[Intent]:
    """All that waits of one account, due or not: by nonce, so in the order they were added."""
    query = f"{_SELECT} WHERE state = 'waiting' AND kind = ? AND account = ? ORDER BY nonce"
    return [_intent(row) for row in db.execute(query, (kind, account))]


def intents_of(
    db: apsw.Connection, kind: str, account: str, limit: int, state: IntentState | None = None
) -> list[Intent]:
    """The latest intents of one account, in that state if one is given, the latest first."""
    query = (
        f"{_SELECT} WHERE kind = ?1 AND account = ?2 AND (?3 IS NULL OR state = ?3)"
        " ORDER BY created DESC, id LIMIT ?4"
    )
    return [_intent(row) for row in db.execute(query, (kind, account, state, limit))]


def intents_with(db: apsw.Connection, kind: str, account: str, part: bytes, limit: int) -> list[Intent]:
    """The latest intents of one account that have these bytes in their body, the latest first."""
    query = (
        f"{_SELECT} WHERE kind = ? AND account = ? AND instr(body, ?) > 0 ORDER BY created DESC, id LIMIT ?"
    )
    return [_intent(row) for row in db.execute(query, (kind, account, part, limit))]


def next_times(db: apsw.Connection, kind: str) -> dict[str, float]:
    """When the next intent of that kind is due, for each account of which any waits."""
    query = "SELECT account, min(next_time) FROM intent WHERE state = 'waiting' AND kind = ? GROUP BY account"
    return dict(db.execute(query, (kind,)))


def dead_intents(db: apsw.Connection, kind: str, limit: int) -> list[Intent]:
    """Dead letters, the latest first."""
    query = f"{_SELECT} WHERE state = 'dead' AND kind = ? ORDER BY created DESC LIMIT ?"
    return [_intent(row) for row in db.execute(query, (kind, limit))]


def next_nonce(db: apsw.Connection, account: str) -> int:
    """The nonce that the account's next intent must carry, 0 for the first."""
    return db.execute("SELECT next FROM nonce WHERE account = ?", (account,)).get or 0


def _take_nonce(db: apsw.Connection, account: str, nonce: int) -> None:
    following = next_nonce(db, account)
    if nonce != following:
        raise Conflict(f"The next nonce of {account} is {following}, not {nonce}.")
    db.execute(
        "INSERT INTO nonce VALUES (?, ?) ON CONFLICT DO UPDATE SET next = excluded.next", (account, nonce + 1)
    )


def _intent(row: tuple[Any, ...]) -> Intent:
    name, kind, account, nonce, body, created, due, state, attempts, error, reference = row
    return Intent(
        name, kind, account, nonce, body, created, due, IntentState(state), attempts, error, reference
    )


def _expect_intent(db: apsw.Connection, name: str) -> None:
    if not db.changes():
        raise Conflict(f"The intent {name} is not there, or not in a state for this.")
