"""Drain: lets what runs finish and lets nothing new in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from llmesh.errors import NodeBusy

__all__ = ["Drain"]


class Drain:
    """Counts the requests under way, from peers and from this machine alike."""

    def __init__(self) -> None:
        self._running = 0
        self.closed = False
        self._empty = trio.Event()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Around one request.  Raises NodeBusy once the drain is closed."""
        if self.closed:
            raise NodeBusy("This node is shutting down.", retry_after=5.0)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self.closed and not self._running:
                self._empty.set()

    async def close(self) -> None:
        """Let no more in and wait until all are out; the caller bounds the wait."""
        self.closed = True
        if self._running:
            await self._empty.wait()
