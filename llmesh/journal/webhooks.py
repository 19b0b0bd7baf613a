"""Webhooks as rows; their deliveries are intents of the outbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from llmesh.errors import Conflict, NotFound

__all__ = ["MOST_WEBHOOKS", "AddWebhook", "RemoveWebhook", "RotateSecret", "Webhook", "all_webhooks"]

MOST_WEBHOOKS = 100
"""Webhooks of one node."""
_SELECT = "SELECT id, url, events, secret, previous, previous_until, created FROM webhook"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell of which events; the `previous` secret signs too until `previous_until` (seconds)."""

    id: str
    url: str
    events: frozenset[str]
    secret: str
    created: float
    previous: str = ""
    previous_until: float = 0.0

    def secrets(self, now: float) -> tuple[str, ...]:
        """What a delivery is signed under."""
        return (self.secret, self.previous) if self.previous and now < self.previous_until else (self.secret,)

    def is_like(self, other: Webhook) -> bool:
        """Whether both tell the same place of the same events under the same secret."""
        return (self.url, self.events, self.secret) == (other.url, other.events, other.secret)


@dataclass(frozen=True, slots=True)
class AddWebhook:
    """A new webhook; one that is like another changes nothing, so that no event is told twice.

    Conflict where there are `MOST_WEBHOOKS`, or this id, already.
    """

    webhook: Webhook

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row."""
        new = self.webhook
        if any(new.is_like(known) for known in all_webhooks(db)):
            return
        if db.execute("SELECT count(*) FROM webhook").get >= MOST_WEBHOOKS:
            raise Conflict(f"There are {MOST_WEBHOOKS} webhooks, the most that there may be; remove one.")
        db.execute(
            "INSERT INTO webhook VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                new.id, new.url, " ".join(sorted(new.events)), new.secret, new.previous,
                new.previous_until, new.created,
            ),
        )  # fmt: skip
        if not db.changes():
            raise Conflict(f"There is a webhook {new.id} already.")


@dataclass(frozen=True, slots=True)
class RotateSecret:
    """A new secret; the present one signs too until a time.  NotFound for an unknown webhook."""

    id: str
    secret: str
    previous_until: float

    def apply(self, db: apsw.Connection) -> None:
        """Move the secret."""
        db.execute(
            "UPDATE webhook SET previous = secret, previous_until = ?, secret = ? WHERE id = ?",
            (self.previous_until, self.secret, self.id),
        )
        _expect(db, self.id)


@dataclass(frozen=True, slots=True)
class RemoveWebhook:
    """The webhook is told nothing more, nor what waits for it.  NotFound for an unknown one."""

    id: str

    def apply(self, db: apsw.Connection) -> None:
        """Delete the row and its deliveries."""
        db.execute("DELETE FROM webhook WHERE id = ?", (self.id,))
        _expect(db, self.id)
        db.execute("DELETE FROM intent WHERE kind = 'webhook' AND account = ?", (self.id,))


def all_webhooks(db: apsw.Connection) -> list[Webhook]:
    """All of them, the oldest first."""
    return [_webhook(row) for row in db.execute(f"{_SELECT} ORDER BY created, id")]


def _webhook(row: tuple[Any, ...]) -> Webhook:
    name, url, events, secret, previous, until, created = row
    return Webhook(name, url, frozenset(events.split()), secret, created, previous, until)


def _expect(db: apsw.Connection, name: str) -> None:
    if not db.changes():
        raise NotFound(f"There is no webhook {name}.")
