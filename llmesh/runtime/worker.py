"""The worker: a process that has one model open and answers its node over stdin and stdout.

A reader thread takes orders, checks inputs and stops runs; the main thread runs one inference at
a time, in order of arrival.  What nobody expects ends the process, and the node starts another.
It ends with its node too, even while a graph runs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import HEADER
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, TooLarge, ValidationFailed
from llmesh.runtime.graph import Array, Stop
from llmesh.runtime.model import Model, open_model
from llmesh.runtime.pipe import LOAD, Event, Infer, Load, Order, decode_order, encode_event

__all__ = ["main"]

_PARENT_WATCH_SECONDS = 1.0


@dataclass(slots=True)
class _Job:
    call: int
    feeds: Mapping[str, Array]
    stop: Stop = field(default_factory=Stop)


class _Worker:
    def __init__(self, model: Model, events: BinaryIO) -> None:
        self._model = model
        self._events = events
        self._writing = threading.Lock()
        self._jobs: dict[int, _Job] = {}  # accepted, not yet begun or running
        self._running = 0
        self._deciding = threading.Lock()  # over the two above
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()

    def take_orders(self, orders: BinaryIO) -> None:
        """The reader thread; the end of the orders is the end of the process."""
        while order := _read_order(orders):
            call, what = order
            if isinstance(what, Infer):
                self._check(call, what.values)
            elif isinstance(what, Cancel):
                self._cancel(call)
        os._exit(0)

    def run_jobs(self) -> None:
        """The main thread."""
        while True:
            job = self._queue.get()
            with self._deciding:
                if job.call not in self._jobs:  # cancelled while it waited
                    continue
                self._running = job.call
            frames = self._run(job)
            with self._deciding:
                del self._jobs[job.call]
                self._running = 0
            self._write(frames)

    def _check(self, call: int, values: Mapping[str, Value]) -> None:
        try:
            job = _Job(call, self._model.check(values))
        except ValidationFailed as error:
            self._write(encode_event(call, error))
            return
        self._write(encode_event(call, Accepted()))
        with self._deciding:
            self._jobs[call] = job
        self._queue.put(job)

    def _cancel(self, call: int) -> None:
        with self._deciding:
            job = self._jobs.get(call)
            if job is None:  # it has just been answered
                return
            if self._running == call:
                job.stop.set()
                return
            del self._jobs[call]
        self._write(encode_event(call, Cancel()))

    def _run(self, job: _Job) -> bytes:
        """The frames that end a job."""
        start = time.perf_counter()
        try:
            values = self._model.answer(job.feeds, job.stop)
            usage = Usage(self._model.input_tokens(job.feeds), 0, (time.perf_counter() - start) * 1e3)
            return encode_event(job.call, Chunk(0, values=values)) + encode_event(job.call, usage)
        except (ModelFailed, TooLarge) as error:
            return encode_event(job.call, Cancel() if job.stop.is_set() else error)

    def _write(self, frames: bytes) -> None:
        with self._writing:
            self._events.write(frames)
            self._events.flush()


def _read_order(orders: BinaryIO) -> tuple[int, Order] | None:
    """The next order; None at the end, also where that comes in the middle of one."""
    head = orders.read(HEADER)
    size = int.from_bytes(head, "big")
    body = orders.read(size)
    return decode_order(body) if len(head) == HEADER and len(body) == size else None


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes, out of reach of anything that prints or reads: that meets stderr and nothing."""
    orders, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return orders, events


def _watch_parent(parent: int) -> None:
    """Ends the process soon after its node, whatever the reader is busy with."""
    while os.getppid() == parent:
        time.sleep(_PARENT_WATCH_SECONDS)
    os._exit(0)


def _end_with_thread(fault: threading.ExceptHookArgs) -> None:
    """A worker whose reader has failed must not live on, deaf."""
    threading.__excepthook__(fault)
    sys.stderr.flush()
    os._exit(1)


def _be_first_to_go() -> None:
    """When memory runs out, Linux should end a worker and not the node."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _load(orders: BinaryIO) -> Model | MeshError:
    order = _read_order(orders)
    if order is None or not isinstance(order[1], Load):
        return ModelFailed("The first order must be to load a model.")
    try:
        return open_model(order[1])
    except ValidationFailed as error:
        return error


def main() -> None:
    """Load the one model, then serve until the node closes the pipe."""
    orders, events = _take_pipes()
    threading.excepthook = _end_with_thread
    _be_first_to_go()
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    model = _load(orders)
    event: Event
    if isinstance(model, MeshError):
        event = model
    else:
        event = ModelInfo(ModelId(""), model.task, model.inputs, model.outputs, model.labels)
    events.write(encode_event(LOAD, event))
    events.flush()
    if isinstance(model, MeshError):
        sys.exit(0)
    worker = _Worker(model, events)
    threading.Thread(target=worker.take_orders, args=(orders,), daemon=True).start()
    worker.run_jobs()


if __name__ == "__main__":
    main()
