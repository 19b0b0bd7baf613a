"""The worker: a process that has one model open and answers its node over stdin and stdout.

It locks itself in before it loads a library or looks at the model.  It checks inputs and obeys
cancels while a graph runs.  What nobody expects ends the process, and the node starts another.
It ends with its node too, even while a graph runs.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import Splitter
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime.job import Job, Model, Outcome
from llmesh.runtime.memory import own_memory
from llmesh.runtime.orders import LOAD, Event, Infer, Load, Loaded, Order, Probe, Scan
from llmesh.runtime.pipe import MAX_BODY, decode_order, encode_event
from llmesh.runtime.sandbox import SandboxLevel, enter

__all__ = ["main"]

_PARENT_WATCH_SECONDS = 1.0
_READ = 1 << 18
_PROMPT_SECONDS = 0.002
"""Within so much an answer may bring along that it was accepted, which spares both sides a turn."""

_Job: TypeAlias = Job[Any]


class _Orders:
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


class _Worker:
    """Two threads take turns: one listens, and runs the jobs it hears of while the other listens.

    So a job starts in the thread that read it, without waking another first.
    """

    def __init__(self, model: Model[Any], window: float, orders: _Orders, events: BinaryIO) -> None:
        self._model = model
        self._window = window
        self._orders = orders
        self._events = events
        self._listening = threading.Lock()
        self._deciding = threading.Lock()  # over what follows, and over what is said of it
        self._jobs: dict[int, _Job] = {}
        self._waiting: dict[int, _Job] = {}
        self._fresh: dict[int, _Job] = {}  # of the listening thread: not yet said to be accepted
        self._alone: set[int] = set()
        self._stepping = False
        self._quick = False
        self._unsaid = b""  # goes out with what is said next, which of a quick model is soon

    def serve(self) -> None:
        """What each of the threads does; the end of the orders is the end of the process."""
        while True:
            with self._listening:
                self._listen()
            if self._window:
                time.sleep(self._window)
            while self._step():
                pass

    def _listen(self) -> None:
        """Take orders until there are jobs that this thread is to run itself: all that came at once."""
        said = b""
        while True:
            if self._unsaid and not self._orders.come_within(_PROMPT_SECONDS):
                with self._deciding:
                    self._write(b"")
            order = self._orders.next()
            if order is None:
                os._exit(0)
            said += self._obey(*order)
            if self._orders.come_within(0) and len(self._fresh) < self._model.batch:
                continue
            with self._deciding:
                self._waiting |= self._fresh
                self._fresh.clear()
                if self._waiting and not self._stepping:
                    self._stepping = True
                    self._unsaid += said
                    if not self._quick:
                        self._write(b"")
                    return
                self._write(said)
            said = b""

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
        return encode_event(call, Accepted())

    def _cancel(self, call: int) -> bytes:
        with self._deciding:
            job = self._jobs.get(call)
            if job is None:
                return b""
            waits = self._waiting.pop(call, None) or self._fresh.pop(call, None)
            if waits is None and not self._model.leave(job):
                return b""
            del self._jobs[call]
        return encode_event(call, Cancel())

    def _step(self) -> bool:
        """Let the model work once; False, and the next order starts it again, if nothing is to be done."""
        with self._deciding:
            joining = self._model.take(list(self._waiting.values()))
            for job in joining:
                del self._waiting[job.call]
            self._stepping = bool(joining or self._model.busy)
            if not self._stepping:
                return False
        start = time.perf_counter()
        outcomes = [(job.call, *_encoded(job.call, outcome)) for job, outcome in self._model.step(joining)]
        self._quick = time.perf_counter() - start < _PROMPT_SECONDS
        with self._deciding:
            self._write(b"".join(frame for call, frame, last in outcomes if self._is_said(call, last=last)))
        return True

    def _is_said(self, call: int, *, last: bool) -> bool:
        """Nothing is, once the call is over for its node."""
        if last:
            return self._jobs.pop(call, None) is not None
        return call in self._jobs

    def _write(self, frames: bytes) -> None:
        self._events.write(self._unsaid + frames)
        self._events.flush()
        self._unsaid = b""


def _encoded(call: int, outcome: Outcome) -> tuple[bytes, bool]:
    """The frame, and whether it is the last of its call."""
    try:
        return encode_event(call, outcome), not isinstance(outcome, Chunk)
    except TooLarge as error:
        return encode_event(call, error), True


def _take_pipes() -> tuple[_Orders, BinaryIO]:
    """The two pipes, out of reach of anything that prints or reads: that meets stderr and nothing."""
    orders, events = os.dup(0), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return _Orders(orders), events


def _watch_parent(parent: int) -> None:
    """Ends the process soon after its node, whatever the reader is busy with."""
    while os.getppid() == parent:
        time.sleep(_PARENT_WATCH_SECONDS)
    os._exit(0)


def _end_with_thread(fault: threading.ExceptHookArgs) -> None:
    """A worker must not live on with one thread, deaf while it runs."""
    threading.__excepthook__(fault)
    sys.stderr.flush()
    os._exit(1)


def _be_first_to_go() -> None:
    """When memory runs out, Linux should end a worker and not the node."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _lock_in(readable: list[Path], memory: int, require: SandboxLevel) -> SandboxLevel:
    """For good, and before any thread but this one exists.  Raises ValidationFailed below `require`."""
    level = enter(readable, memory)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    if level < require:
        raise ValidationFailed(
            f"This node opens models only in a sandbox of level {require.name};"
            f" on this machine workers reach {level.name}."
        )
    return level


def _serve_model(order: Load, orders: _Orders, events: BinaryIO) -> None:
    readable = [Path(order.folder) / name for name in order.files]
    event: Event
    try:
        level = _lock_in(readable, order.memory, order.settings.require)
        # Only now: these load native libraries, which start threads and read the model's bytes.
        from llmesh.runtime.model import open_model

        model = open_model(order)
    except (ValidationFailed, ModelFailed) as error:
        event = error
    else:
        info = ModelInfo(ModelId(""), model.task, model.inputs, model.outputs, model.labels)
        event = Loaded(info, level, order.settings.provider, model.batch, own_memory())
    events.write(encode_event(LOAD, event))
    events.flush()
    if isinstance(event, MeshError):
        return
    worker = _Worker(model, order.settings.window, orders, events)
    threading.Thread(target=worker.serve, daemon=True).start()
    worker.serve()


def _scan_graphs(order: Scan, orders: _Orders, events: BinaryIO) -> None:
    following: Order | None = order
    while isinstance(following, Scan):
        events.write(encode_event(LOAD, _scan(following, first=following is order)))
        events.flush()
        received = orders.next()
        following = received[1] if received else None


def _scan(order: Scan, *, first: bool) -> Event:
    try:
        if first:
            _lock_in([Path(order.folder)], order.memory, order.require)
        from llmesh.runtime.scan import scan_graph  # after the door is shut

        return scan_graph(Path(order.folder), order.graph)
    except ValidationFailed as error:
        return error
    except MemoryError:
        return ValidationFailed(f"{order.graph} takes more memory to read than it may.")


def _probe(order: Probe, events: BinaryIO) -> None:
    level = _lock_in([], order.memory, SandboxLevel.NONE)
    from llmesh.runtime.graph import abilities

    events.write(encode_event(LOAD, abilities(level)))
    events.flush()


def main() -> None:
    """Do what the first order says, until that is done or the node closes the pipe."""
    orders, events = _take_pipes()
    threading.excepthook = _end_with_thread
    _be_first_to_go()
    match orders.next():
        case (_, Load() as order):
            _serve_model(order, orders, events)
        case (_, Scan() as order):
            _scan_graphs(order, orders, events)
        case (_, Probe() as order):
            _probe(order, events)


if __name__ == "__main__":
    main()
