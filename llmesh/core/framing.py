"""Frames on a byte stream: a 4-byte big-endian length, then that many bytes.

Sans-IO: bytes go in as they arrive, whole frames come out.  What a frame means is not known here.
"""

from __future__ import annotations

from llmesh.errors import ValidationFailed

__all__ = ["HEADER", "MAX_FRAME", "Splitter", "with_length"]

HEADER = 4
"""Bytes of the length before each frame."""

MAX_FRAME = 1 << 20
"""The longest frame a session takes; a longer one is refused when its length is seen."""


def with_length(body: bytes) -> bytes:
    """The frame as it travels."""
    return len(body).to_bytes(HEADER, "big") + body


class Splitter:
    """Cuts a byte stream into frames; holds at most one unfinished frame besides what was just fed."""

    __slots__ = ("_limit", "_needed", "_rest")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._needed = HEADER

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The frames that these bytes complete.

        Raises ValidationFailed for a length over the limit, before anything of that size is held;
        the stream is of no use after that.
        """
        frames: list[bytes] = []
        start = self._finish(data, frames) if self._rest else 0
        start = self._cut(data, start, frames)
        self._rest += data[start:]
        return frames

    def _finish(self, data: bytes | memoryview, frames: list[bytes]) -> int:
        """Add to the unfinished frame what belongs to it; where the rest of the data starts."""
        start, rest = 0, self._rest
        while True:
            end = start + self._needed - len(rest)
            rest += data[start:end]
            if end > len(data):
                return len(data)
            start, needed = end, HEADER + self._length(rest[:HEADER])
            if needed == len(rest):
                frames.append(bytes(memoryview(rest)[HEADER:]))
                self._rest = bytearray()
                return start
            self._needed = needed

    def _cut(self, data: bytes | memoryview, start: int, frames: list[bytes]) -> int:
        """Cut out the whole frames from `start` on; where the rest starts.  Notes what that needs."""
        size = len(data)
        while size - start >= HEADER:
            body = start + HEADER
            end = body + self._length(data[start:body])
            if end > size:
                self._needed = end - start
                return start
            frames.append(bytes(data[body:end]))
            start = end
        if start < size:
            self._needed = HEADER
        return start

    def _length(self, header: bytes | bytearray | memoryview) -> int:
        length = int.from_bytes(header, "big")
        if length > self._limit:
            raise ValidationFailed(f"A frame of {length} bytes is over the limit of {self._limit}.")
        return length
