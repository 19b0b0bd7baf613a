"""The Runtime that ships: every loaded model in a worker process of its own.

The node's side; it never loads onnxruntime, numpy or tokenizers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import ModelNotFound
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.hosted import HostedModel
from llmesh.runtime.runtime import Runtime

__all__ = ["open_worker_runtime"]


@asynccontextmanager
async def open_worker_runtime(threads: int | None = None) -> AsyncIterator[Runtime]:
    """A Runtime whose models run on `threads` threads each, by default half of the cores.

    Leaving ends all workers and waits until they are gone.
    """
    async with trio.open_nursery() as nursery:
        yield WorkerRuntime(nursery, threads or max(1, (os.cpu_count() or 1) // 2))
        nursery.cancel_scope.cancel()


class WorkerRuntime:
    """See `Runtime`; a model's worker that died comes back by itself with the next request."""

    def __init__(self, nursery: trio.Nursery, threads: int) -> None:
        self._nursery = nursery
        self._threads = threads
        self._models: dict[ModelId, HostedModel] = {}
        self._loading: dict[ModelId, trio.Event] = {}

    async def load(self, bundle: Bundle) -> ModelInfo:
        """Start the model's worker.  Raises ValidationFailed, ModelFailed if none can be started."""
        while bundle.id in self._loading:
            await self._loading[bundle.id].wait()
        if hosted := self._models.get(bundle.id):
            return hosted.info
        done = self._loading[bundle.id] = trio.Event()
        hosted = HostedModel(bundle, self._threads)
        try:
            await self._nursery.start(hosted.run)
            self._models[bundle.id] = hosted
        finally:
            if bundle.id not in self._models:
                hosted.stop()
            del self._loading[bundle.id]
            done.set()
        return hosted.info

    async def unload(self, model: ModelId) -> None:
        """End the model's worker and wait until it is gone; one not loaded is left so."""
        if hosted := self._models.pop(model, None):
            hosted.stop()
            await hosted.stopped.wait()

    def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk | Usage]]:
        """See `Runtime.infer`; TooLarge for values over the worker's 64 MiB."""
        if hosted := self._models.get(model):
            return hosted.infer(values)
        raise ModelNotFound(f"The model {model} is not loaded on this node.")
