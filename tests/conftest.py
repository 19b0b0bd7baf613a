"""The clock of tests in virtual time, for all packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmesh.journal.writer import Writer


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """pytest-trio's, but it stands still while work is done in threads.

    Trio takes a task that waits for a thread for an idle one: the clock would jump to whatever deadline
    comes next, and what a test saw would hang on how fast the machine is.
    """
    clock = MockClock(autojump_threshold=0)
    in_thread, hand_over, written = trio.to_thread.run_sync, Writer._hand_over, Writer._written
    working: set[object] = set()

    def begins(who: object) -> None:
        working.add(who)
        clock.autojump_threshold = math.inf

    def ends(who: object) -> None:
        working.discard(who)
        clock.autojump_threshold = math.inf if working else 0

    async def run_sync(work: Callable[..., object], *arguments: object, **options: Any) -> object:
        begins(call := object())
        try:
            return await in_thread(work, *arguments, **options)
        finally:
            ends(call)

    def handed_over(writer: Writer) -> None:
        hand_over(writer)
        if writer._under_way:
            begins(writer)

    def was_written(writer: Writer, result: Any) -> None:
        ends(writer)
        written(writer, result)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr("trio._path.run_sync", run_sync)
    monkeypatch.setattr(Writer, "_hand_over", handed_over)
    monkeypatch.setattr(Writer, "_written", was_written)
    return clock
