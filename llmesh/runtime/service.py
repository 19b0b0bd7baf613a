"""A worker at work: it hears orders, checks inputs, obeys cancels, lets the model step, says what came of it.

Other threads go on with all that while a graph runs, so that the graph is what everybody waits for.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import Splitter
from llmesh.core.inference import Chunk
from llmesh.errors import NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime.job import Job, Model, Outcome
from llmesh.runtime.orders import Infer, Order, Whole
from llmesh.runtime.pipe import MAX_BODY, decode_order, encode_event

__all__ = ["Orders", "serve"]

_READ = 1 << 18
_PROMPT_SECONDS = 0.002
"""Within so much an answer may say by itself that it was accepted, which spares both sides a turn."""

_UNSPOKEN = 4
"""Steps that the model may be ahead of what is said of them."""

_Job: TypeAlias = Job[Any]
_Outcomes: TypeAlias = Sequence[tuple[_Job, Outcome]]


class Orders:
    """The orders from the node, as they come."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._splitter = Splitter(MAX_BODY)
        self._bodies: deque[bytes] = deque()

    def next(self) -> tuple[int, Order] | None:
        """Waits; None at the end, also where that comes in the middle of an order."""
        while not self._bodies:
            data = os.read(self._pipe, _READ)
            if not data:
                return None
            self._bodies.extend(self._splitter.feed(data))
        return decode_order(self._bodies.popleft())

    def come_within(self, seconds: float) -> bool:
        """Whether there is something to read by then."""
        return bool(self._bodies or select.select([self._pipe], [], [], seconds)[0])


def serve(model: Model[Any], window: float, orders: Orders, events: BinaryIO) -> None:
    """For ever: the end of the orders is the end of the process.  `window` as in `WorkerSettings`."""
    service = _Service(model, window, orders, events)
    for turn in (service.take_turns, service.speak_on):
        threading.Thread(target=turn, daemon=True).start()
    service.take_turns()


class _Service:
    """Two threads take turns: one listens, and runs the jobs it hears of while the other listens.

    So a job starts in the thread that read it, without waking another first; and where it will be
    answered at once, no other is woken at all.  A third thread says what a step gave when the next
    step follows at once.
    """

    def __init__(self, model: Model[Any], window: float, orders: Orders, events: BinaryIO) -> None:
        self._model = model
        self._window = window
        self._orders = orders
        self._events = events
        self._listening = threading.Lock()
        self._deciding = threading.Lock()  # over what follows, and over what is written
        self._jobs: dict[int, _Job] = {}
        self._waiting: dict[int, _Job] = {}
        self._fresh: dict[int, _Job] = {}  # of the listening thread: not yet waiting
        self._alone: set[int] = set()
        self._stepping = False
        self._joining: list[_Job] = []
        self._unsaid: dict[int, None] = {}  # calls that were accepted: goes out with what is said next
        self._speaking = threading.Lock()  # over the order of the outcomes
        self._outcomes: deque[_Outcomes] = deque()
        self._to_speak = threading.Semaphore(0)

    def take_turns(self) -> None:
        """What each of the two threads does."""
        while True:
            with self._listening:
                self._listen()
                while self._model.quick and not self._step():
                    self._listen()
            if self._window:
                time.sleep(self._window)
                if not self._choose():  # all have left
                    continue
            while self._step():
                pass

    def speak_on(self) -> None:
        """What the third does."""
        while True:
            self._to_speak.acquire()
            self._speak()

    def _listen(self) -> None:
        """Take orders until there are jobs that this thread is to run itself: all that came at once."""
        said = b""
        while True:
            if self._unsaid and not self._orders.come_within(_PROMPT_SECONDS):
                self._write(b"")
            order = self._orders.next()
            if order is None:
                os._exit(0)
            said += self._obey(*order)
            if self._orders.come_within(0) and len(self._fresh) < self._model.batch:
                continue
            if self._begins():
                if said or not self._model.quick:
                    self._write(said)
                return
            self._write(said)
            said = b""

    def _begins(self) -> bool:
        """Whether, with what was just heard, this thread is the one to let the model step."""
        with self._deciding:
            self._waiting |= self._fresh
            self._unsaid |= dict.fromkeys(self._fresh)
            self._fresh.clear()
            if self._stepping or not self._waiting:
                return False
            self._stepping = True
        if not self._window:
            self._choose()
        return True

    def _obey(self, call: int, order: Order) -> bytes:
        """What there is to say of it at once."""
        if isinstance(order, Cancel):
            return self._cancel(call)
        if isinstance(order, Infer):
            return self._check(call, order.values)
        self._alone.add(call)
        return b""

    def _check(self, call: int, values: Mapping[str, Value]) -> bytes:
        alone = call in self._alone
        self._alone.discard(call)
        try:
            job = Job(call, self._model.check(values), alone)
        except (ValidationFailed, TooLarge, NodeBusy) as error:
            return encode_event(call, error)
        self._fresh[call] = job
        with self._deciding:
            self._jobs[call] = job
        return b""

    def _cancel(self, call: int) -> bytes:
        with self._deciding:
            job = self._jobs.get(call)
            if job is None:
                return b""
            waits = self._waiting.pop(call, None) or self._fresh.pop(call, None)
            if waits is None and not self._model.leave(job):
                return b""
            del self._jobs[call]
            self._unsaid.pop(call, None)
        return encode_event(call, Cancel())

    def _choose(self) -> bool:
        """Decide who joins the next step; False where there is none before the next order."""
        with self._deciding:
            self._joining = self._model.take(list(self._waiting.values()))
            for job in self._joining:
                del self._waiting[job.call]
            self._stepping = bool(self._joining or self._model.busy)
            return self._stepping

    def _step(self) -> bool:
        """Let the model work once; whether it is to go on at once."""
        if self._joining or self._model.busy:
            self._outcomes.append(list(self._model.step(self._joining)))
        goes_on = self._choose()
        if goes_on and len(self._outcomes) < _UNSPOKEN:
            self._to_speak.release()
        else:
            self._speak()
        return goes_on

    def _speak(self) -> None:
        with self._speaking:
            while self._outcomes:
                self._say(self._outcomes.popleft())

    def _say(self, outcomes: _Outcomes) -> None:
        encoded = [(job.call, outcome, *_encoded(job.call, outcome)) for job, outcome in outcomes]
        with self._deciding:
            said = []
            for call, outcome, frame, last in encoded:
                if self._is_said(call, last=last):
                    said.append(frame)
                    if isinstance(outcome, Whole):
                        self._unsaid.pop(call, None)
            self._flush(b"".join(said))

    def _is_said(self, call: int, *, last: bool) -> bool:
        """Nothing is, once the call is over for its node."""
        if last:
            return self._jobs.pop(call, None) is not None
        return call in self._jobs

    def _write(self, frames: bytes) -> None:
        with self._deciding:
            self._flush(frames)

    def _flush(self, frames: bytes) -> None:
        accepted = b"".join(encode_event(call, Accepted()) for call in self._unsaid)
        self._unsaid.clear()
        if accepted or frames:
            self._events.write(accepted + frames)
            self._events.flush()


def _encoded(call: int, outcome: Outcome) -> tuple[bytes, bool]:
    """The frame, and whether it is the last of its call."""
    try:
        return encode_event(call, outcome), not isinstance(outcome, Chunk)
    except TooLarge as error:
        return encode_event(call, error), True
