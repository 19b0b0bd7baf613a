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

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete.

        Raises ValidationFailed for a length over the limit, before anything of that size is held;
        the stream is of no use after that.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
        frames, start = self._cut(data)
        self._rest = bytearray(memoryview(data)[start:])
        return frames

    def _cut(self, data: bytes) -> tuple[list[bytes], int]:
        """The whole frames in `data` and where the rest starts; notes what the rest needs."""
        frames: list[bytes] = []
        start, size = 0, len(data)
        while size - start >= HEADER:
            body = start + HEADER
            length = int.from_bytes(data[start:body], "big")
            if length > self._limit:
                raise ValidationFailed(f"A frame of {length} bytes is over the limit of {self._limit}.")
            if body + length > size:
                self._needed = HEADER + length
                return frames, start
            start = body + length
            frames.append(data[body:start])
        self._needed = HEADER
        return frames, start
