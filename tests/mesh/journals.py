"""Journals in memory, on trio's clock: real tables and rules, no threads, and a disk that fails on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw
import trio

from llmesh.core.ids import PeerId
from llmesh.errors import TransactionFailed
from llmesh.journal.open import Journal
from llmesh.journal.schema import migrate
from llmesh.journal.writer import Change, _write


class QuickJournal(Journal):
    """Each commit takes `delay` seconds; while `full` is set none succeeds, and `unreadable` none is read."""

    def __init__(self, owner: PeerId) -> None:
        self.db = apsw.Connection(":memory:")
        migrate(self.db, 0, owner)
        self.delay = 0.0
        self.full = self.unreadable = False
        self.commits: list[tuple[Change, ...]] = []

    async def commit(self, *changes: Change) -> None:
        """As a real one: cancelled before it is queued, or not at all."""
        await trio.lowlevel.checkpoint_if_cancelled()
        full, done = self.full, None if self.full else _write(self.db, [changes])[0]
        with trio.CancelScope(shield=True):
            await trio.sleep(self.delay)
        if full or done is None:
            raise TransactionFailed("The disk is full.")
        done.unwrap()
        self.commits.append(changes)

    async def read(self, query: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the same loop."""
        await trio.lowlevel.checkpoint()
        if self.unreadable:
            raise TransactionFailed("The disk cannot be read.")
        return query(self.db, *args, **kwargs)
