"""The inferences that one model owes an answer, in order of arrival; no worker, no clock.

The calls are the truth and the worker is replaceable: the oldest that it had accepted is always
among those that it runs, so when it dies running one, that one is taken for the cause and fails;
when it may have been running several, a fresh worker gets each of them alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.inference import Chunk, Usage
from llmesh.errors import MeshError, NodeBusy
from llmesh.runtime.answer import Answer
from llmesh.runtime.orders import Alone, Event, Whole
from llmesh.runtime.pipe import Garbage, encode_order

__all__ = ["MAX_CALLS", "OBEY_SECONDS", "Call", "Calls"]

MAX_CALLS = 256
"""Inferences of one model at once, running and waiting; one more is refused with NodeBusy."""

MAX_HELD = 128 << 20
"""Bytes of input that all of them together hold; over it, none is taken but a lone one."""

OBEY_SECONDS = 1.0
"""A worker that has not stopped a cancelled call within this time is killed."""

_STRIKES = 2
_SMOOTHING = 0.02
_LEAST_WAIT = 0.1


@dataclass(slots=True, eq=False)
class Call:
    """One inference: its order to the worker, the way to its caller, and how far it has come."""

    number: int
    frame: bytes
    answer: Answer
    sent: bool = False
    alone: bool = False
    accepted_at: float | None = None
    chunks: int = 0
    strikes: int = 0
    cancelled_at: float | None = None


class Calls:
    """The table of calls.  Every method decides at once; `now` is any steady clock's seconds."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._held = 0
        self._outbox: deque[Call] = deque()
        self._free_since = 0.0
        self._answered = 0
        self._pace = 0.0

    def __len__(self) -> int:
        return len(self._calls)

    def check_room(self, size: int, now: float) -> None:
        """Raises NodeBusy where one more call, with an order of `size` bytes, finds no room."""
        if len(self._calls) >= MAX_CALLS or (self._calls and self._held + size > MAX_HELD):
            raise NodeBusy(
                f"{len(self._calls)} inferences of this model wait already.",
                retry_after=round(max(_LEAST_WAIT, len(self._calls) * self._seconds_each(now)), 1),
            )

    def add(self, call: Call) -> None:
        """Take a call in, last in line."""
        self._calls[call.number] = call
        self._held += len(call.frame)
        self._outbox.append(call)

    def next_frame(self) -> bytes | None:
        """What is to be sent next: an order to infer, or to cancel one that was sent."""
        while self._outbox:
            call = self._outbox.popleft()
            if call.cancelled_at is None:
                call.sent = True
                return encode_order(call.number, Alone()) + call.frame if call.alone else call.frame
            if call.number in self._calls:
                return encode_order(call.number, Cancel())
        return None

    def take_frame(self, call: Call) -> bytes | None:
        """The order of a call that was just added, if it is the next to be sent and short of nothing."""
        if len(self._outbox) != 1 or self._outbox[0] is not call:
            return None
        return self.next_frame()

    def put_back(self, call: Call) -> None:
        """What `take_frame` gave could not be sent after all."""
        call.sent = False
        self._outbox.appendleft(call)

    def note(self, number: int, event: Event, now: float) -> Call:
        """Move a call on by what the worker says.  Raises Garbage for what may not come now."""
        call = self._calls.get(number)
        if call is None or not call.sent:
            raise Garbage(f"an event for call {number}, which it does not have")
        match event:
            case Accepted() if call.accepted_at is None:
                call.accepted_at = now
            case Chunk() if call.accepted_at is not None and event.index == call.chunks:
                call.chunks += 1
            case Usage() if call.accepted_at is not None:
                self._complete(call, call.accepted_at, event, now)
            case Whole() if call.chunks == 0:
                self._complete(call, now if call.accepted_at is None else call.accepted_at, event.usage, now)
            case MeshError():
                self._drop(call, now)
            case Cancel() if call.cancelled_at is not None:
                self._drop(call, now)
            case _:
                raise Garbage(f"{type(event).__name__} out of turn")
        return call

    def cancel(self, call: Call, now: float) -> bool:
        """The caller has left; False, and nothing changes, if the call was over or cancelled by then."""
        if call.number not in self._calls or call.cancelled_at is not None:
            return False
        call.cancelled_at = now
        if call.sent:
            self._outbox.append(call)
        else:
            self._drop(call, now)
        return True

    def obey_by(self) -> float:
        """When the worker must have stopped the oldest cancelled call; infinity if there is none."""
        times = (call.cancelled_at for call in self._calls.values() if call.cancelled_at is not None)
        return min(times, default=float("inf")) + OBEY_SECONDS

    def bury_worker(self, now: float, batch: int) -> list[Call]:
        """The worker is gone, which ran up to `batch` at once: the calls that fail with it.

        The others are to be sent again.
        """
        accepted = [call for call in self._calls.values() if call.accepted_at is not None]
        cause = accepted[0] if accepted else None
        if batch > 1 and len(accepted) > 1 and not accepted[0].alone:
            cause = None
            for call in accepted:
                call.alone = True
        gone = [call for call in self._calls.values() if self._goes_down(call, cause)]
        for call in gone:
            self._drop(call, now)
        self.send_again(now)
        return gone

    def send_again(self, now: float) -> None:
        """To a fresh worker, all that are there; it knows nothing of those whose callers have left."""
        for call in list(self._calls.values()):
            if call.cancelled_at is not None:
                self._drop(call, now)
            call.sent, call.accepted_at = False, None
        self._outbox = deque(self._calls.values())

    def drop_all(self, now: float) -> list[Call]:
        """All calls, forgotten."""
        gone = list(self._calls.values())
        for call in gone:
            self._drop(call, now)
        return gone

    def _goes_down(self, call: Call, cause: Call | None) -> bool:
        """An order that no worker gets round to accepting may be what kills them: two tries."""
        call.strikes += call.accepted_at is None
        return call is cause or call.chunks > 0 or call.cancelled_at is not None or call.strikes >= _STRIKES

    def _complete(self, call: Call, accepted_at: float, usage: Usage, now: float) -> None:
        """Where an answer says by itself that it was accepted, the worker's own figure is its time."""
        self._measure(max(now - max(accepted_at, self._free_since), usage.compute_ms / 1e3))
        call.accepted_at = accepted_at
        self._drop(call, now)

    def _drop(self, call: Call, now: float) -> None:
        del self._calls[call.number]
        self._held -= len(call.frame)
        if call.accepted_at is not None:
            self._free_since = now

    def _measure(self, seconds: float) -> None:
        """The mean of the first, later of the last fifty or so: whole batches, whose calls end together."""
        self._answered += 1
        self._pace += max(_SMOOTHING, 1 / self._answered) * (seconds - self._pace)

    def _seconds_each(self, now: float) -> float:
        """The usual time of one call, or that of the running one if it already takes longer."""
        accepted = [call.accepted_at for call in self._calls.values() if call.accepted_at is not None]
        running = now - max(accepted[0], self._free_since) if accepted else 0.0
        return max(self._pace, running)
