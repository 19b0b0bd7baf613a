"""The keys of this gateway: made, found, revoked, and what each may spend in a day.

A key is `llmesh_` and 256 random bits, shown once.  All are held in memory, by digest: a request
waits for no disk, and one process has the journal.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import trio

from llmesh.core.account import Purse
from llmesh.core.amount import Amount
from llmesh.errors import Conflict, NotFound, TransactionFailed, Unauthorized, ValidationFailed
from llmesh.gateway.callers import Scope
from llmesh.journal.budgets import ForgetMarks, RaiseMark, SettleMark, marks_of
from llmesh.journal.keys import AddKey, KeyRow, RevokeKey, all_keys, digest_key
from llmesh.journal.open import Journal
from llmesh.journal.purse import DurablePurse

__all__ = ["PREFIX", "Keys", "open_keys"]

PREFIX = "llmesh_"
MAX_NAME = 64
_DAY = 86_400
_NOTHING = Amount(0)
_SETTLING = 2.0
"""Seconds that a stop may take to write down what was really spent."""


class Keys:
    """All keys of one node; only `open_keys` makes one.  `clock` gives seconds since 1970."""

    def __init__(
        self,
        journal: Journal,
        secret: bytes,
        rows: list[KeyRow],
        marks: Mapping[str, Amount],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._secret = secret
        self._clock = clock
        self._making = trio.Lock()
        self._rows = {row.digest: row for row in rows}
        self._day = _day(clock())
        self._purses = {
            row.id: self._new_purse(row.id, row.daily_budget, marks.get(_purse_name(row.id), _NOTHING))
            for row in rows
            if row.daily_budget is not None
        }

    @property
    def rows(self) -> list[KeyRow]:
        """Every key that was ever made, the oldest first."""
        return sorted(self._rows.values(), key=lambda row: (row.created, row.id))

    @property
    def any(self) -> bool:
        """Whether there is a key that has not been revoked: one that ran out still closes the door."""
        return any(row.revoked is None for row in self._rows.values())

    async def create(
        self,
        name: str,
        scopes: frozenset[Scope],
        budget: Amount | None,
        lifetime: float | None = None,
    ) -> tuple[KeyRow, str]:
        """A new key, and its text, which nobody sees again.

        `budget` is MESH a day, None for no limit; `lifetime` in seconds.  Raises ValidationFailed for a
        name or lifetime that will not do, Conflict where a key in force has the name, TransactionFailed.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise ValidationFailed(f"A key's name is 1 to {MAX_NAME} printable characters.")
        async with self._making:  # two at once must not get one name
            return await self._create(name, scopes, budget, lifetime)

    async def revoke(self, which: str) -> KeyRow:
        """Make a key, told by its id or its name, good for nothing from now on.

        Raises NotFound where there is none, Conflict where several have the name, TransactionFailed
        where that cannot be kept.
        """
        row = self._named(which)
        revoked = replace(row, revoked=row.revoked if row.revoked is not None else self._clock())
        await self._journal.commit(RevokeKey(row.id, self._clock()))
        self._rows[row.digest] = revoked
        return revoked

    def find(self, text: str) -> KeyRow:
        """The key in force with that text.  Raises Unauthorized."""
        row = self._rows.get(digest_key(self._secret, text))
        if row is None:
            raise Unauthorized("This gateway does not know the key.")
        if row.revoked is not None:
            raise Unauthorized(f"The key {row.id} has been revoked; ask its owner for a new one.")
        if not row.is_valid(self._clock()):
            raise Unauthorized(f"The key {row.id} has expired; ask its owner for a new one.")
        return row

    def purse(self, row: KeyRow) -> DurablePurse | None:
        """What the key may still spend today (UTC); None where it has no budget."""
        if row.daily_budget is None:
            return None
        today = _day(self._clock())
        if today > self._day:  # a clock that is set back gives no budget twice
            self._day, self._purses = today, {}
        if row.id not in self._purses:
            self._purses[row.id] = self._new_purse(row.id, row.daily_budget, _NOTHING)
        return self._purses[row.id]

    async def settle(self) -> None:
        """Write down what was really spent, so that a clean stop loses none of a budget."""
        marks = [
            SettleMark(_purse_name(id), self._day, purse.committed)
            for id, purse in self._purses.items()
            if purse.marked
        ]
        if marks:
            await self._journal.commit(*marks, ForgetMarks(self._day))

    async def _create(
        self, name: str, scopes: frozenset[Scope], budget: Amount | None, lifetime: float | None
    ) -> tuple[KeyRow, str]:
        now = self._clock()
        if any(row.label == name and row.is_valid(now) for row in self._rows.values()):
            raise Conflict(f"There is a key named {name!r} in force; revoke it, or choose another name.")
        expires = None if lifetime is None else now + lifetime
        text, id = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(4)
        granted = frozenset(map(str, scopes))
        row = KeyRow(id, digest_key(self._secret, text), name, granted, now, expires, None, budget)
        await self._journal.commit(AddKey(row))
        self._rows[row.digest] = row
        return row, text

    def _new_purse(self, id: str, budget: Amount, spent: Amount) -> DurablePurse:
        return DurablePurse(Purse(budget, spent), partial(self._keep_mark, _purse_name(id), self._day))

    async def _keep_mark(self, purse: str, day: int, mark: Amount) -> None:
        await self._journal.commit(RaiseMark(purse, day, mark))

    def _named(self, which: str) -> KeyRow:
        found = [row for row in self._rows.values() if which in (row.id, row.label)]
        in_force = [row for row in found if row.revoked is None]
        if not found:
            raise NotFound(f"There is no key {which[:MAX_NAME]!r}; `llmesh keys list` shows all.")
        if len(in_force) > 1:
            ids = ", ".join(row.id for row in in_force)
            raise Conflict(f"Several keys are named {which!r}: say which by its id, of {ids}.")
        return (in_force or found)[0]


@asynccontextmanager
async def open_keys(
    journal: Journal, secret: bytes, clock: Callable[[], float] = time.time
) -> AsyncIterator[Keys]:
    """The keys in a journal, under the secret that their digests are made with.

    Leaving writes down what was spent of each budget, within two seconds.
    """
    rows = await journal.read(all_keys)
    keys = Keys(journal, secret, rows, await journal.read(marks_of, _day(clock())), clock)
    try:
        yield keys
    finally:
        with trio.move_on_after(_SETTLING) as cleanup, suppress(TransactionFailed):
            cleanup.shield = True  # else each budget counts as spent up to its mark: less, never more
            await keys.settle()


def _purse_name(id: str) -> str:
    return f"key {id}"


def _day(now: float) -> int:
    return int(now // _DAY)
