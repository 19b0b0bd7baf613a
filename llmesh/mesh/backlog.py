"""Backlog: what a payer writes down about its spending, a little later and many at a time.

None of it has to be durable before anything else happens: what a crash loses, the next sync with the
provider brings back.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import trio

from llmesh.core.voucher import ChannelId
from llmesh.errors import Conflict, TransactionFailed
from llmesh.journal.channels import RecordPayerBooks
from llmesh.journal.open import Journal
from llmesh.journal.writer import Change

__all__ = ["Backlog"]

log = logging.getLogger(__name__)

PERIOD = 0.5
"""Seconds between two writes."""
LONGEST = 10_000
"""Changes that wait for a disk that takes none; further ones are dropped."""


class Backlog:
    """Changes to the Journal that may wait; `run` writes them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._changes: list[Change] = []
        self._books: dict[ChannelId, RecordPayerBooks] = {}
        self._writing = trio.Lock()

    def add(self, *changes: Change) -> None:
        """Write these soon, after all that was added before."""
        self._changes += changes[: max(0, LONGEST - len(self._changes))]

    def add_books(self, books: RecordPayerBooks) -> None:
        """Write the books of a channel soon; of one channel only the latest."""
        self._books[books.id] = books

    async def run(self) -> None:
        """Write what there is, every half a second, until cancelled."""
        while True:
            await trio.sleep(PERIOD)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Write what there is, for whoever is about to read it; a disk that takes none is logged."""
        try:
            await self.flush()
        except TransactionFailed as error:
            log.warning("what was spent is not written down yet: %s", error.message)

    async def flush(self) -> None:
        """Write what there is, after a write that is under way.

        Raises TransactionFailed; then, or when cancelled, it goes on waiting.
        """
        async with self._writing:
            await self._flush()

    async def _flush(self) -> None:
        changes, books = self._changes, self._books
        if not changes and not books:
            return
        self._changes, self._books = [], {}
        try:
            await self._write([*changes, *books.values()])
        except BaseException:
            self._changes = [*changes, *self._changes][:LONGEST]
            self._books = books | self._books
            raise

    async def _write(self, changes: list[Change]) -> None:
        try:
            await self._journal.commit(*changes)
        except Conflict:
            # One of them is there already, or its channel is gone: the others are wanted all the same.
            for change in changes:
                with suppress(Conflict):
                    await self._journal.commit(change)
