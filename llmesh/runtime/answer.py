"""Answer: what a worker says to one call, from the task that hears it to the caller who reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import trio

from llmesh.core.encoding import Tensor
from llmesh.core.inference import Chunk, Usage
from llmesh.errors import MeshError

__all__ = ["BYTES_AHEAD", "Answer"]

BYTES_AHEAD = 1 << 20
"""How far a worker may be ahead of a caller; who is further behind loses the rest of the answer."""

_SMALL = 128  # bytes that an event without values counts for


class Answer:
    """For one reader and one writer.  Reading takes a turn of the event loop only where it must wait."""

    def __init__(self) -> None:
        self._events: deque[Chunk | Usage] = deque()
        self._ahead = 0
        self._accepted = False
        self._over = False
        self._left = False
        self._error: MeshError | None = None
        self._news = trio.lowlevel.ParkingLot()

    # --- the caller's side

    async def wait_accepted(self) -> None:
        """Raises the MeshError that came instead."""
        while not (self._accepted or self._over):
            await self._news.park()
        if not self._accepted:
            self._raise_error()

    def __aiter__(self) -> AsyncIterator[Chunk | Usage]:
        return self

    async def __anext__(self) -> Chunk | Usage:
        while not self._events:
            self._raise_error()
            if self._over:
                raise StopAsyncIteration
            await self._news.park()
        event = self._events.popleft()
        self._ahead -= _size(event)
        return event

    def leave(self) -> None:
        """The caller reads no more."""
        self._left = True
        self._events.clear()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # --- the worker's side

    def accept(self) -> None:
        """The first good news; a second time it is no news."""
        self._accepted = True
        self._news.unpark_all()

    def put(self, event: Chunk | Usage) -> bool:
        """False where the caller is too far behind for one more chunk; for one who left, all is well."""
        if self._left or self._over:
            return True
        if isinstance(event, Chunk) and self._ahead > BYTES_AHEAD:
            return False
        self._events.append(event)
        self._ahead += _size(event)
        self._news.unpark_all()
        return True

    def end(self, error: MeshError | None = None) -> None:
        """Nothing more comes; what is there can still be read, and then the error is raised.

        Only the first end counts.
        """
        if not self._over:
            self._over, self._error = True, error
            self._news.unpark_all()


def _size(event: Chunk | Usage) -> int:
    if isinstance(event, Usage):
        return _SMALL
    tensors = sum(len(value.data) for value in event.values.values() if isinstance(value, Tensor))
    return _SMALL + len(event.text) + tensors
