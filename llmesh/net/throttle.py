"""Throttle: holds bytes back so that all who share it stay under one rate."""

from __future__ import annotations

import trio

from llmesh.core.bandwidth import Bucket

__all__ = ["Throttle"]


class Throttle:
    """A cap in bytes per second, None for none; whoever comes first goes first."""

    def __init__(self, rate: float | None = None) -> None:
        self._bucket = Bucket(rate) if rate is not None else None

    def take(self, size: int) -> float:
        """The seconds to wait before so many bytes may go; who does not wait has had them all the same."""
        return self._bucket.take(size, trio.current_time()) if self._bucket is not None else 0.0
