"""Credit: how many bytes a sender may have under way that the receiver has not yet taken out.

One pair of windows per direction of a call and one per direction of the whole session.  A frame
costs its payload and a fixed overhead, so that empty messages are not free.  After HTTP/2's flow
control (RFC 9113, section 5.2), with the update sent at half.
"""

from __future__ import annotations

from llmesh.errors import ValidationFailed

__all__ = ["CALL_WINDOW", "MAX_CALL_WINDOW", "OVERHEAD", "SESSION_WINDOW", "ReceiveWindow", "SendWindow"]

OVERHEAD = 64
"""What a frame with a payload costs besides its payload."""

CALL_WINDOW = 256 << 10
"""Credit of each direction of a call at its start; a slow reader holds back only its own call."""

MAX_CALL_WINDOW = 1 << 20
"""Credit that an opener may give the handler instead, for bulk: over a distance, window / round trip is
the speed."""

SESSION_WINDOW = 2 << 20
"""Credit of each direction of a session at its start, returned as frames are read, not consumed.

Below what the transport's own window never falls short of, so that window cannot close on us.
"""


class SendWindow:
    """What may still be sent."""

    __slots__ = ("left", "size")

    def __init__(self, size: int) -> None:
        self.size = self.left = size

    def grant(self, amount: int) -> None:
        """The receiver has taken `amount` out.  Raises ValidationFailed beyond what was sent."""
        if self.left + amount > self.size:
            raise ValidationFailed("A peer gave more credit than was used.")
        self.left += amount


class ReceiveWindow:
    """What may still arrive, and what is owed to the sender."""

    __slots__ = ("_left", "_owed", "_size")

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._owed = 0

    def arrive(self, cost: int) -> None:
        """Something came.  Raises ValidationFailed where the sender had no credit for it."""
        self._left -= cost
        if self._left < 0:
            raise ValidationFailed("A peer sent more than it had credit for.")

    def take(self, cost: int) -> int:
        """Something was taken out; the credit to return now, 0 until half the window is owed."""
        self._owed += cost
        if self._owed * 2 < self._size:
            return 0
        owed, self._owed = self._owed, 0
        self._left += owed
        return owed
