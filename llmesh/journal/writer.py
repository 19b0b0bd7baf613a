"""The one writer: commits whatever waits, in one transaction, as soon as the last one is on the disk.

No timer: while one group is being written the next one gathers, so a lone caller waits for one
fsync and a crowd shares one.  Group commit after DeWitt et al. (SIGMOD 1984).  It writes in a thread of
its own: to take one of trio's for each group costs as much as the group.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeAlias

import apsw
import outcome
import trio

from llmesh.errors import TransactionFailed
from llmesh.journal.faults import DISK_FAULTS, failed_write

__all__ = ["CAPACITY", "Change", "Writer"]

CAPACITY = 1024
"""Most commits that are queued, so also of one transaction; further callers stand in line."""
LOG = 1000
"""Pages of 4 KiB in the log from which on they are carried over into the file."""


class Change(Protocol):
    """One step of a transaction.  It runs in the writer's thread and touches nothing but the database."""

    def apply(self, db: apsw.Connection) -> None:
        """Make the change, or raise an error of `llmesh.errors` and with it refuse the whole commit."""


Changes: TypeAlias = tuple[Change, ...]


@dataclass(slots=True, eq=False)
class _Ticket:
    changes: Changes
    task: trio.lowlevel.Task


class Writer:
    """Owns the connection that writes; `run` is its task, and has its thread."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._log = 0
        db.set_wal_hook(self._note_log)  # in the place of SQLite's own, which keeps callers waiting
        self._queue: deque[_Ticket] = deque()
        self._line: dict[_Ticket, None] = {}
        self._under_way: list[_Ticket] = []
        self._wake = trio.Event()
        self._closed = False
        self._groups: SimpleQueue[list[Changes] | None] = SimpleQueue()  # at most one, and the end
        self._broken: BaseException | None = None

    async def commit(self, changes: Changes) -> None:
        """Make all changes durable or none; commits take effect in the order of the calls.

        Raises what a change raised, or TransactionFailed if the disk did not take it; then nothing
        of it is there.  Once queued it is carried through: a cancel is noticed before that (by
        Cancelled, and nothing was written) or after the return, never in between.  Where `CAPACITY`
        commits are queued the caller stands in line, in order, and a cancel takes it out.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise TransactionFailed("The journal is closed.")
        ticket = _Ticket(changes, trio.lowlevel.current_task())
        if len(self._queue) >= CAPACITY:  # as it always is while anyone stands in line
            self._line[ticket] = None
        else:
            self._queue.append(ticket)
        if not self._under_way:
            self._wake.set()  # not written here: others who are about to commit come along
        await trio.lowlevel.wait_task_rescheduled(partial(self._leave_line, ticket))

    async def run(self) -> None:
        """Write until `close`, and then all that is queued.

        No cancel reaches it, since what is queued was promised; it ends as soon as the disk lets it.
        """
        work = partial(self._work, trio.lowlevel.current_trio_token())
        thread = threading.Thread(target=work, name="journal", daemon=True)
        thread.start()
        try:
            with trio.CancelScope(shield=True):
                while self._queue or self._under_way or not self._closed:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if self._broken is not None:
                        raise self._broken
                    if not self._under_way:
                        self._hand_over()
        finally:
            self._closed = True
            self._refuse([*self._under_way, *self._queue, *self._line])
            self._groups.put(None)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.join)

    def close(self) -> None:
        """Take no more commits."""
        self._closed = True
        self._wake.set()

    def _leave_line(self, ticket: _Ticket, _: object) -> trio.lowlevel.Abort:
        if ticket not in self._line:
            return trio.lowlevel.Abort.FAILED
        del self._line[ticket]
        return trio.lowlevel.Abort.SUCCEEDED

    def _hand_over(self) -> None:
        """Give the thread all that is queued; nothing is under way."""
        self._under_way = list(self._queue)
        self._queue.clear()
        while self._line and len(self._queue) < CAPACITY:
            first = next(iter(self._line))
            del self._line[first]
            self._queue.append(first)
        if self._under_way:
            self._groups.put([ticket.changes for ticket in self._under_way])

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        """The thread."""
        token.run_sync_soon(self._note_end, outcome.capture(self._write_groups, token))

    def _write_groups(self, token: trio.lowlevel.TrioToken) -> None:
        """What a group leaves to do is done once its callers are told."""
        while (groups := self._groups.get()) is not None:
            token.run_sync_soon(self._written, _write(self._db, groups))
            if self._log >= LOG:
                _empty_log(self._db)

    def _note_log(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log = pages
        return apsw.SQLITE_OK

    def _note_end(self, end: outcome.Outcome[None]) -> None:
        if isinstance(end, outcome.Error):
            self._broken = end.error
            self._wake.set()

    def _written(self, outcomes: list[outcome.Outcome[None]]) -> None:
        """What became of the group under way; the next one goes to the thread before anybody is told."""
        done = self._under_way
        self._hand_over()
        for ticket, each in zip(done, outcomes, strict=True):
            trio.lowlevel.reschedule(ticket.task, each)
        if self._closed:
            self._wake.set()

    def _refuse(self, tickets: list[_Ticket]) -> None:
        """Only where the writer itself broke is there anyone left to refuse."""
        for ticket in tickets:
            failure = TransactionFailed("The journal's writer has ended.")
            trio.lowlevel.reschedule(ticket.task, outcome.Error(failure))


def _write(db: apsw.Connection, commits: list[Changes]) -> list[outcome.Outcome[None]]:
    """One transaction for all; what each caller gets.  A refused commit leaves the others alone."""
    try:
        db.execute("BEGIN IMMEDIATE")
        outcomes = [_write_one(db, changes) for changes in commits]
        db.execute("UPDATE journal SET commits = commits + 1")
        db.execute("COMMIT")
    except DISK_FAULTS as error:
        _undo(db)
        return [outcome.Error(failed_write(error)) for _ in commits]
    return outcomes


def _write_one(db: apsw.Connection, changes: Changes) -> outcome.Outcome[None]:
    db.execute("SAVEPOINT one")
    result = outcome.capture(_apply, db, changes)
    if isinstance(result, outcome.Error):
        if isinstance(result.error, DISK_FAULTS):
            raise result.error
        db.execute("ROLLBACK TO one")
    db.execute("RELEASE one")
    return result


def _apply(db: apsw.Connection, changes: Changes) -> None:
    for change in changes:
        change.apply(db)


def _empty_log(db: apsw.Connection) -> None:
    """Carry over what no reader's snapshot still needs; where that fails, the next group tries again."""
    with contextlib.suppress(apsw.Error):
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


def _undo(db: apsw.Connection) -> None:
    """Drop a failed transaction for good.

    Its frames may stand whole in the log although their fsync failed, and would come back when the
    process dies now.  Any other transaction is written over them, so write one at once.
    """
    if db.in_transaction:
        db.execute("ROLLBACK")
    with contextlib.suppress(*DISK_FAULTS):
        db.execute("UPDATE journal SET commits = commits + 1, failures = failures + 1")
