"""The order in which a session's frames leave: what is small first, then one large piece, in turn.

Frames of one call keep their order; calls with large pieces take turns, one piece each.  Sans-IO:
the caller writes each batch and asks for the next.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["BATCH", "SMALL", "Outbox"]

BATCH = 131_026
"""Most bytes of a batch: with its yamux header it fills two Noise messages."""

SMALL = 16 << 10
"""A frame up to this size goes with the small ones."""


class _Piece(NamedTuple):
    after: int  # small frames that were queued before it
    cost: int
    data: bytes


class Outbox:
    """Frames that wait to be written.  Nothing here limits `size`; credit and the session do."""

    __slots__ = ("_pieces", "_queued", "_small", "_small_last", "_written", "size")

    def __init__(self) -> None:
        self.size = 0
        self._small: deque[bytes] = deque()
        self._pieces: dict[int, deque[_Piece]] = {}
        self._queued = 0
        self._written = 0
        self._small_last = False

    def post(self, data: bytes) -> None:
        """Queue a frame that may overtake the large pieces of its own call."""
        self.size += len(data)
        self._queued += 1
        self._small.append(data)

    def add(self, call: int, data: bytes, cost: int = 0) -> None:
        """Queue a frame behind all earlier ones of its call; `cost` is what `drop` gives back."""
        pieces = self._pieces.get(call)
        if pieces is None:
            if len(data) <= SMALL:
                self.post(data)
                return
            pieces = self._pieces[call] = deque()
        self.size += len(data)
        pieces.append(_Piece(self._queued, cost, data))

    def drop(self, call: int) -> int:
        """Forget the large pieces of a call that nobody wants any more; the sum of their costs."""
        pieces = self._pieces.pop(call, None)
        if pieces is None:
            return 0
        self.size -= sum(len(piece.data) for piece in pieces)
        return sum(piece.cost for piece in pieces)

    def batch(self) -> bytes:
        """What to write next, at most `BATCH` bytes unless one frame is longer; empty when all is out."""
        if self._small and (self._small_last is False or not self._piece_is_due()):
            data = self._take_small()
        elif self._pieces:
            data = self._take_pieces()
        else:
            return b""
        self.size -= len(data)
        return data

    def _piece_is_due(self) -> bool:
        """Whether the next piece's earlier small frames are all out."""
        return bool(self._pieces) and self._first_piece().after <= self._written

    def _take_small(self) -> bytes:
        small = self._small
        parts = [small.popleft()]
        size = len(parts[0])
        while small and size + len(small[0]) <= BATCH:
            parts.append(small.popleft())
            size += len(parts[-1])
        self._written += len(parts)
        self._small_last = True
        return b"".join(parts)

    def _take_pieces(self) -> bytes:
        """One piece of each call in turn, as many as fit and may go before the small frames."""
        parts = [self._next_piece()]
        size = len(parts[0])
        while self._pieces and size + len(self._first_piece().data) <= BATCH and self._piece_is_due():
            parts.append(self._next_piece())
            size += len(parts[-1])
        self._small_last = False
        return b"".join(parts)

    def _first_piece(self) -> _Piece:
        return next(iter(self._pieces.values()))[0]

    def _next_piece(self) -> bytes:
        call = next(iter(self._pieces))
        pieces = self._pieces.pop(call)
        data = pieces.popleft().data
        if pieces:
            self._pieces[call] = pieces  # behind the other calls
        return data
