"""Throttle: holds bytes back so that all who share it stay under one rate."""

from __future__ import annotations

import trio

from llmesh.core.bandwidth import Bucket

__all__ = ["Throttle"]


class Throttle:
    """A cap in bytes per second, None for none; whoever comes first goes first."""

    def __init__(self, rate: float | None = None) -> None:
        self._bucket = Bucket(rate) if rate is not None else None

    async def pass_on(self, size: int) -> None:
        """Wait until so many bytes may go.  Cancelled, their share of the rate is lost."""
        if self._bucket is None:
            return
        wait = self._bucket.take(size, trio.current_time())
        if wait > 0:
            await trio.sleep(wait)
