"""The clock of tests in virtual time, for all packages."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import pytest
import trio
from trio.testing import MockClock

from llmesh.journal.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """pytest-trio's, but it stands still while work is done in threads.

    Trio takes a task that waits for a thread for an idle one: the clock would jump to whatever deadline
    comes next, and what a test saw would hang on how fast the machine is.
    """
    clock = MockClock(autojump_threshold=0)
    working = 0

    def still(work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal working
            working += 1
            clock.autojump_threshold = math.inf
            try:
                return await work(*args, **kwargs)
            finally:
                working -= 1
                clock.autojump_threshold = math.inf if working else 0

        return run

    run_sync = still(trio.to_thread.run_sync)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr("trio._path.run_sync", run_sync)
    monkeypatch.setattr(Writer, "commit", still(Writer.commit))
    return clock
