"""One loaded model: its calls, and the worker process that answers them, replaced when it dies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, ModelNotFound, ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.calls import CHUNKS_AHEAD, OBEY_SECONDS, Call, Calls
from llmesh.runtime.pipe import LOAD, Event, Garbage, Infer, Load, encode_order
from llmesh.runtime.process import WorkerEnded, WorkerProcess, open_worker

__all__ = ["Answer", "HostedModel"]

_log = logging.getLogger(__name__)

_LOAD_SECONDS = 300.0


class Answer:
    """What the worker says to one call, as it comes; for one reader."""

    def __init__(self, call: Call, events: trio.MemoryReceiveChannel[Accepted | Chunk | Usage]) -> None:
        self._call = call
        self._events = events

    async def wait_accepted(self) -> None:
        """Raises the MeshError that came instead."""
        await self._next()

    def __aiter__(self) -> AsyncIterator[Chunk | Usage]:
        return self

    async def __anext__(self) -> Chunk | Usage:
        event = await self._next()
        if isinstance(event, Chunk | Usage):
            return event
        raise StopAsyncIteration

    async def _next(self) -> Accepted | Chunk | Usage | None:
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            if self._call.error is not None:
                raise self._call.error from None
            return None


class HostedModel:
    """A model that `run` keeps up until `stop`; a worker that died returns with the next call."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        files = tuple(file.path for file in bundle.files)
        self._bundle = bundle
        self._order = encode_order(LOAD, Load(str(bundle.folder), files, bundle.graph, threads))
        self._info: ModelInfo | None = None
        self._calls = Calls()
        self._last_number = LOAD
        self._ordered = trio.lowlevel.ParkingLot()
        self._cancelled = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self.stopped = trio.Event()

    @property
    def info(self) -> ModelInfo:
        """What the model takes and gives; known as soon as `run` has started."""
        assert self._info is not None  # noqa: S101
        return self._info

    def stop(self) -> None:
        """End the worker; calls under way fail.  `stopped` is set when it is gone."""
        self._scope.cancel()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Started once the model is loaded.  Raises what the first load raises, and nothing later."""
        try:
            with self._scope:
                fault = await self._live(task_status.started)
                if self._info is None:
                    raise fault
                while True:
                    _log.warning("model %s: %s", self._bundle.id[:12], fault.message)
                    _close(self._calls.bury_worker(fault, trio.current_time()))
                    while not self._calls:
                        await self._ordered.park()
                    fault = await self._live(_nothing)
                    if isinstance(fault, ValidationFailed):  # said of the files, not of a caller's input
                        fault = ModelFailed(f"The model could not be loaded again: {fault.message}")
        finally:
            unloaded = ModelFailed("The model was unloaded before it had answered.")
            _close(self._calls.fail_all(unloaded, trio.current_time()))
            self.stopped.set()

    @asynccontextmanager
    async def infer(self, values: Mapping[str, Value]) -> AsyncIterator[AsyncIterator[Chunk | Usage]]:
        """See `Runtime.infer`."""
        if self._scope.cancel_called or self.stopped.is_set():
            raise ModelNotFound(f"The model {self._bundle.id} is no longer loaded on this node.")
        call, events = self._add_call(values)
        try:
            answer = Answer(call, events)
            await answer.wait_accepted()
            yield answer
        finally:
            events.close()
            if self._calls.cancel(call, trio.current_time()):
                self._ordered.unpark_all()
                self._cancelled.unpark_all()

    def _add_call(
        self, values: Mapping[str, Value]
    ) -> tuple[Call, trio.MemoryReceiveChannel[Accepted | Chunk | Usage]]:
        self._last_number += 1
        frame = encode_order(self._last_number, Infer(values))
        self._calls.check_room(len(frame), trio.current_time())
        caller, events = trio.open_memory_channel[Accepted | Chunk | Usage](CHUNKS_AHEAD)
        call = Call(self._last_number, frame, caller)
        self._calls.add(call)
        self._ordered.unpark_all()
        return call, events

    async def _live(self, loaded: Callable[[], None]) -> MeshError:
        """The life of one worker; what it died of."""
        try:
            async with open_worker() as worker:
                fault = await self._load(worker)
                if fault is None:
                    loaded()
                    fault = await self._serve(worker)
        except OSError as error:
            fault = ModelFailed(f"No worker could be started: {error.strerror}.")
        return fault

    async def _load(self, worker: WorkerProcess) -> MeshError | None:
        try:
            with trio.fail_after(_LOAD_SECONDS):
                await worker.send(self._order)
                number, event = await worker.receive()
        except trio.TooSlowError:
            return ModelFailed(f"The model was not loaded within {_LOAD_SECONDS:.0f} s.")
        except WorkerEnded as end:
            return ModelFailed(f"The model's worker died while it loaded: {end}{worker.last_complaint()}.")
        if isinstance(event, MeshError):
            return event
        if number != LOAD or not isinstance(event, ModelInfo):
            return ModelFailed("The model's worker broke the protocol.")
        self._info = replace(event, id=self._bundle.id)
        return None

    async def _serve(self, worker: WorkerProcess) -> MeshError:
        end = "it did not do as told and was killed"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_orders, worker, nursery.cancel_scope)
            nursery.start_soon(self._enforce_cancels, nursery.cancel_scope)
            end = await self._take_events(worker)
            nursery.cancel_scope.cancel()
        return ModelFailed(f"The model's worker died: {end}.")

    async def _send_orders(self, worker: WorkerProcess, life: trio.CancelScope) -> None:
        try:
            while True:
                while (frame := self._calls.next_frame()) is None:
                    await self._ordered.park()
                await worker.send(frame)
        except WorkerEnded:  # dead, which the reader will see; or deaf, and then it must go
            await trio.sleep(OBEY_SECONDS)
            life.cancel()

    async def _enforce_cancels(self, life: trio.CancelScope) -> None:
        while trio.current_time() < self._calls.obey_by():
            with trio.move_on_at(self._calls.obey_by()):
                await self._cancelled.park()
        life.cancel()

    async def _take_events(self, worker: WorkerProcess) -> str:
        """Hand events to their callers until the worker ends; why it did."""
        try:
            while True:
                number, event = await worker.receive()
                await _deliver(self._calls.note(number, event, trio.current_time()), event)
        except WorkerEnded as end:
            return str(end)
        except Garbage as garbage:
            return f"it broke the protocol: {garbage}"


async def _deliver(call: Call, event: Event) -> None:
    """Waits while the caller is too far behind; the model's other callers then wait as well."""
    if isinstance(event, Accepted | Chunk | Usage) and not (isinstance(event, Accepted) and call.entered):
        call.entered = True
        with contextlib.suppress(trio.BrokenResourceError):  # the caller has left
            await call.caller.send(event)
    if isinstance(event, Usage | MeshError | Cancel):
        call.caller.close()


def _close(gone: list[Call]) -> None:
    for call in gone:
        call.caller.close()


def _nothing() -> None:
    """A later worker of a model is nobody's news."""
