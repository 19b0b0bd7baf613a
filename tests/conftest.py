"""The clock of tests in virtual time, for all packages."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """pytest-trio's, but it stands still while work is done in threads.

    Trio takes a task that waits for a thread for an idle one: the clock would jump to whatever deadline
    comes next, and what a test saw would hang on how fast the machine is.
    """
    clock = MockClock(autojump_threshold=0)
    in_thread = trio.to_thread.run_sync
    working = 0

    async def run_sync(work: Callable[..., object], *arguments: object, **options: object) -> object:
        nonlocal working
        working += 1
        clock.autojump_threshold = math.inf
        try:
            return await in_thread(work, *arguments, **options)  # type: ignore[arg-type]
        finally:
            working -= 1
            clock.autojump_threshold = math.inf if working else 0

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr("trio._path.run_sync", run_sync)
    return clock
