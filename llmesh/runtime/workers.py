"""The Runtime that ships: every loaded model in a worker process of its own.

The node's side; it never loads onnxruntime, numpy or tokenizers.  Models share the cores as the
kernel shares them among processes with as many threads each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, ModelNotFound, NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.hosted import HostedModel, LoadPlan
from llmesh.runtime.memory import machine_memory
from llmesh.runtime.orders import LOAD, Abilities, Event, Probe
from llmesh.runtime.pipe import encode_order
from llmesh.runtime.process import WorkerEnded, WorkerProcess, open_worker
from llmesh.runtime.runtime import Runtime, WorkerStatus
from llmesh.runtime.scanner import scan_bundle_graph
from llmesh.runtime.settings import WorkerSettings, address_space

__all__ = ["open_worker_runtime", "probe_workers"]

_PROBE_SECONDS = 30.0
_END_SECONDS = 5.0


@asynccontextmanager
async def open_worker_runtime(
    settings: WorkerSettings | None = None, budget: int | None = None
) -> AsyncIterator[Runtime]:
    """A Runtime that runs its models as `settings` say.

    `budget` is how many bytes all workers together may have in memory, by default half of the
    machine's: idle models are put to rest, the longest unused first, to keep below it.  Leaving
    ends all workers and waits until they are gone.
    """
    async with trio.open_nursery() as nursery:
        yield WorkerRuntime(nursery, settings or WorkerSettings(), budget or machine_memory() // 2)
        nursery.cancel_scope.cancel()


async def probe_workers(settings: WorkerSettings | None = None) -> Abilities:
    """Start a worker without a model and ask what this machine allows.  Raises ModelFailed."""
    try:
        async with open_worker() as worker:
            answer = await _ask(worker, Probe(address_space(settings or WorkerSettings(), 0)))
    except OSError as error:
        raise ModelFailed(f"No worker could be started: {error.strerror}.") from None
    if not isinstance(answer, Abilities):
        raise ModelFailed(f"A worker without a model fails: {answer}.")
    return answer


async def _ask(worker: WorkerProcess, probe: Probe) -> Event | str:
    """The answer, or why there is none."""
    try:
        with trio.fail_after(_PROBE_SECONDS):
            await worker.send(encode_order(LOAD, probe))
            return (await worker.receive())[1]
    except trio.TooSlowError:
        return "it says nothing"
    except WorkerEnded as end:
        return f"{end}{worker.last_complaint()}"


class WorkerRuntime:
    """See `Runtime`; a model's worker that died comes back by itself with the next request."""

    def __init__(self, nursery: trio.Nursery, settings: WorkerSettings, budget: int) -> None:
        self._nursery = nursery
        self._settings = settings
        self._budget = budget
        self._hosted: dict[ModelId, HostedModel] = {}
        self._loading: dict[ModelId, trio.Event] = {}

    async def load(self, bundle: Bundle) -> ModelInfo:
        """Check the graph, then start the model's worker; see `Runtime.load`.

        Raises ModelFailed if no process can be started.
        """
        while bundle.id in self._loading:
            await self._loading[bundle.id].wait()
        hosted = self._hosted.get(bundle.id)
        if hosted is not None and not hosted.stopped.is_set():
            return hosted.info
        done = self._loading[bundle.id] = trio.Event()
        try:
            return (await self._start(bundle)).info
        finally:
            del self._loading[bundle.id]
            done.set()

    async def _start(self, bundle: Bundle) -> HostedModel:
        facts = await scan_bundle_graph(bundle.folder, bundle.graph, self._settings.require)
        for name in facts.external:
            if all(file.path != name for file in bundle.files):
                raise ValidationFailed(f"{bundle.graph} keeps data in {name}, which is hidden or not there.")
        hosted = HostedModel(LoadPlan(bundle, facts, self._settings), self._make_room)
        self._hosted[bundle.id] = hosted
        try:
            await self._nursery.start(hosted.run)
            if hosted.resident > self._budget:
                raise self._too_large(hosted)
        except BaseException:  # a cancel too: what is not loaded must not be found
            del self._hosted[bundle.id]
            hosted.stop()
            with trio.CancelScope(shield=True), trio.move_on_after(_END_SECONDS):
                await hosted.stopped.wait()
            raise
        return hosted

    async def unload(self, model: ModelId) -> None:
        """End the model's worker and wait until it is gone; one not loaded is left so."""
        if hosted := self._hosted.pop(model, None):
            hosted.stop()
            await hosted.stopped.wait()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """See `Runtime.workers`."""
        return tuple(hosted.status() for model, hosted in self._hosted.items() if model not in self._loading)

    def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk | Usage]]:
        """See `Runtime.infer`; TooLarge for values over the worker's 64 MiB."""
        hosted = self._hosted.get(model)
        if hosted is None or model in self._loading:
            raise ModelNotFound(f"The model {model} is not loaded on this node.")
        return hosted.infer(values)

    async def _make_room(self, coming: HostedModel) -> None:
        """Put idle models to rest, the longest unused first, until the one that comes fits the budget.

        Raises TooLarge where it cannot, NodeBusy where others that have something to do are in the way.
        """
        if coming.needs > self._budget:
            raise self._too_large(coming)
        while sum(hosted.resident for hosted in self._hosted.values()) > self._budget:
            idle = [hosted for hosted in self._hosted.values() if hosted.idle]
            if not idle:
                raise NodeBusy("Other models that are at work take up this node's memory.", retry_after=1.0)
            await min(idle, key=lambda hosted: hosted.used_at).rest()

    def _too_large(self, hosted: HostedModel) -> MeshError:
        return TooLarge(
            f"The model takes {hosted.needs:,} bytes of memory;"
            f" all models of this node together have {self._budget:,}."
        )
