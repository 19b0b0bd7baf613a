"""One loaded model: its calls, and the worker process that answers them, replaced when it dies.

A model that is put to rest has no worker until the next call.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, ModelNotFound, NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime.answer import BYTES_AHEAD, Answer
from llmesh.runtime.bundle import Bundle, check_unaltered
from llmesh.runtime.calls import OBEY_SECONDS, Call, Calls
from llmesh.runtime.memory import resident_memory
from llmesh.runtime.orders import LOAD, Event, GraphFacts, Infer, Load, Loaded, Whole
from llmesh.runtime.pipe import Garbage, encode_order
from llmesh.runtime.process import WorkerEnded, WorkerProcess, open_worker
from llmesh.runtime.runtime import WorkerStatus
from llmesh.runtime.settings import WorkerSettings, address_space

__all__ = ["HostedModel", "LoadPlan"]

_log = logging.getLogger(__name__)

_LOAD_SECONDS = 300.0
_BURST = 1 << 16  # bytes of orders that go out in one write
_BASE = 64 << 20  # bytes in memory of a worker without a model


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is to be run and how."""

    bundle: Bundle
    facts: GraphFacts
    settings: WorkerSettings

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.bundle.files)

    def load_order(self) -> bytes:
        """The frame."""
        files = tuple(file.path for file in self.bundle.files)
        memory = address_space(self.settings, self.size)
        return encode_order(
            LOAD, Load(str(self.bundle.folder), files, self.bundle.graph, memory, self.settings)
        )


class HostedModel:
    """A model that `run` keeps up until `stop`; a worker that died or rests returns with the next call.

    `make_room` is asked before each worker starts and may refuse with NodeBusy.
    """

    def __init__(self, plan: LoadPlan, make_room: Callable[[HostedModel], Awaitable[None]]) -> None:
        self._plan = plan
        self._make_room = make_room
        self._loaded: Loaded | None = None
        self._worker: WorkerProcess | None = None
        self._starting = False
        self._load_seconds = 0.0
        self._calls = Calls()
        self._last_number = LOAD
        self._ordered = trio.lowlevel.ParkingLot()
        self._cancelled = trio.lowlevel.ParkingLot()
        self._ended = trio.lowlevel.ParkingLot()
        self._sending = False
        self._resting = trio.Event()
        self._scope = trio.CancelScope()
        self.used_at = trio.current_time()
        self.stopped = trio.Event()

    @property
    def info(self) -> ModelInfo:
        """What the model takes and gives; known as soon as `run` has started."""
        assert self._loaded is not None  # noqa: S101
        return self._loaded.info

    @property
    def idle(self) -> bool:
        """Whether it has a worker with nothing to do."""
        return self._worker is not None and not self._calls and not self._starting

    @property
    def resident(self) -> int:
        """Bytes that its worker has in memory, or is about to have; 0 at rest."""
        if self._worker is None and not self._starting:
            return 0
        now = resident_memory(self._worker.pid) if self._worker is not None and not self._starting else None
        return now or self.needs

    @property
    def needs(self) -> int:
        """Bytes that its worker will have in memory, as far as is known."""
        return self._loaded.resident if self._loaded else _BASE + 2 * self._plan.size

    def status(self) -> WorkerStatus:
        """How it is kept at this moment."""
        assert self._loaded is not None  # noqa: S101
        return WorkerStatus(
            model=self.info.id,
            level=self._loaded.level,
            provider=self._loaded.provider,
            batch=self._loaded.batch,
            resident=self.resident,
            calls=len(self._calls),
            load_seconds=self._load_seconds,
        )

    def stop(self) -> None:
        """End the worker; calls under way fail.  `stopped` is set when it is gone."""
        self._scope.cancel()

    async def rest(self) -> None:
        """End an idle worker and wait until it is gone; the next call starts another."""
        self._resting.set()
        while self._worker is not None and self._resting.is_set():
            await self._ended.park()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Started once the model is loaded.  Raises what the first load raises, and nothing later."""
        try:
            with self._scope:
                fault = await self._live(task_status.started)
                if self._loaded is None:
                    raise fault or ModelFailed("The model was unloaded while it loaded.")
                while True:
                    self._settle(fault)
                    while not self._calls:
                        await self._ordered.park()
                    fault = await self._live(_nothing)
                    if isinstance(fault, ValidationFailed):  # said of the files, not of a caller's input
                        fault = ModelFailed(f"The model could not be loaded again: {fault.message}")
        finally:
            unloaded = ModelFailed("The model was unloaded before it had answered.")
            _end(self._calls.drop_all(trio.current_time()), unloaded)
            self.stopped.set()

    @asynccontextmanager
    async def infer(self, values: Mapping[str, Value]) -> AsyncIterator[AsyncIterator[Chunk | Usage]]:
        """See `Runtime.infer`."""
        if self._scope.cancel_called or self.stopped.is_set():
            raise ModelNotFound(f"The model {self._plan.bundle.id} is no longer loaded on this node.")
        call = self._add_call(values)
        try:
            await call.answer.wait_accepted()
            yield call.answer
        finally:
            call.answer.leave()
            self.used_at = trio.current_time()
            self._cancel(call)

    def _cancel(self, call: Call) -> None:
        if self._calls.cancel(call, trio.current_time()):
            self._ordered.unpark_all()
            self._cancelled.unpark_all()

    def _add_call(self, values: Mapping[str, Value]) -> Call:
        self._last_number += 1
        frame = encode_order(self._last_number, Infer(values))
        self._calls.check_room(len(frame), trio.current_time())
        call = Call(self._last_number, frame, Answer())
        self._calls.add(call)
        if not self._send_at_once(call):
            self._ordered.unpark_all()
        return call

    def _send_at_once(self, call: Call) -> bool:
        """Spare the call the turns of the event loop until `_send_orders` would get to it."""
        if self._worker is None or self._starting or self._sending or self._resting.is_set():
            return False
        frame = self._calls.take_frame(call)
        if frame is None:
            return False
        if not self._worker.send_nowait(frame):
            self._calls.put_back(call)
            return False
        return True

    def _settle(self, fault: MeshError | None) -> None:
        """After the life of a worker: who fails with it."""
        now = trio.current_time()
        if fault is None:
            self._calls.send_again(now)
        elif isinstance(fault, NodeBusy | TooLarge):
            _end(self._calls.drop_all(now), fault)
        else:
            _log.warning("model %s: %s", self._plan.bundle.id[:12], fault.message)
            batch = self._loaded.batch if self._loaded else 1
            _end(self._calls.bury_worker(now, batch), fault)

    async def _live(self, loaded: Callable[[], None]) -> MeshError | None:
        """The life of one worker; what it died of, None where it was put to rest."""
        self._starting, self._resting = True, trio.Event()
        start = trio.current_time()
        try:
            await self._make_room(self)
            await trio.to_thread.run_sync(check_unaltered, self._plan.bundle)
            async with open_worker() as worker:
                self._worker = worker
                fault = await self._load(worker)
                if fault is None:
                    self._starting, self._load_seconds = False, trio.current_time() - start
                    loaded()
                    fault = await self._serve(worker)
        except OSError as error:
            return ModelFailed(f"No worker could be started: {error.strerror}.")
        except (NodeBusy, TooLarge, ValidationFailed) as error:
            return error
        finally:
            self._worker, self._starting = None, False
            self._ended.unpark_all()
        return fault

    async def _load(self, worker: WorkerProcess) -> MeshError | None:
        try:
            with trio.fail_after(_LOAD_SECONDS):
                await worker.send(self._plan.load_order())
                number, event = await worker.receive()
        except trio.TooSlowError:
            return ModelFailed(f"The model was not loaded within {_LOAD_SECONDS:.0f} s.")
        except WorkerEnded as end:
            return ModelFailed(f"The model's worker died while it loaded: {end}{worker.last_complaint()}.")
        if isinstance(event, MeshError):
            return event
        if number != LOAD or not isinstance(event, Loaded) or event.level < self._plan.settings.require:
            return ModelFailed("The model's worker broke the protocol.")
        bundle = self._plan.bundle
        execution = self._plan.facts.execution
        self._loaded = replace(
            event, info=replace(event.info, id=bundle.id, variant=bundle.graph, execution=execution)
        )
        return None

    async def _serve(self, worker: WorkerProcess) -> MeshError | None:
        end = "it did not do as told and was killed"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_orders, worker, nursery.cancel_scope)
            nursery.start_soon(self._enforce_cancels, nursery.cancel_scope)
            nursery.start_soon(self._heed_rest, nursery.cancel_scope)
            end = await self._take_events(worker)
            nursery.cancel_scope.cancel()
        if self._resting.is_set():
            return None
        return ModelFailed(f"The model's worker died: {end}.")

    async def _heed_rest(self, life: trio.CancelScope) -> None:
        await self._resting.wait()
        life.cancel()

    async def _send_orders(self, worker: WorkerProcess, life: trio.CancelScope) -> None:
        try:
            while True:
                while (frames := self._burst()) == b"":
                    await self._ordered.park()
                self._sending = True
                await worker.send(frames)
                self._sending = False
        except WorkerEnded:  # dead, which the reader will see; or deaf, and then it must go
            await trio.sleep(OBEY_SECONDS)
            life.cancel()
        finally:
            self._sending = False

    def _burst(self) -> bytes:
        frames, size = [], 0
        while size < _BURST and (frame := self._calls.next_frame()) is not None:
            frames.append(frame)
            size += len(frame)
        return b"".join(frames)

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
                call = self._calls.note(number, event, trio.current_time())
                if not _deliver(call, event):
                    call.answer.end(_left_behind())
                    self._cancel(call)
        except WorkerEnded as end:
            return str(end)
        except Garbage as garbage:
            return f"it broke the protocol: {garbage}"


def _deliver(call: Call, event: Event) -> bool:
    """False where the caller is too far behind to be given it."""
    answer = call.answer
    match event:
        case Accepted():
            answer.accept()
        case Chunk():
            return answer.put(event)
        case Whole(values, usage):
            answer.accept()
            answer.put(Chunk(0, values=values))
            answer.put(usage)
            answer.end()
        case Usage():
            answer.put(event)
            answer.end()
        case Cancel():
            answer.end()
        case MeshError():
            answer.end(event)
    return True


def _left_behind() -> TooLarge:
    return TooLarge(
        f"Over {BYTES_AHEAD:,} bytes of the answer waited to be read, so the rest was cancelled;"
        " read it as it comes, or ask for a shorter one."
    )


def _end(gone: list[Call], fault: MeshError) -> None:
    for call in gone:
        call.answer.end(fault)


def _nothing() -> None:
    """A later worker of a model is nobody's news."""
