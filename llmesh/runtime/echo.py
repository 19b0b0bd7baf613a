"""A Runtime in memory that says back what it is told; most tests of the mesh run on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import trio

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo, TensorSpec
from llmesh.errors import ModelFailed, ModelNotFound, NodeBusy, ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.runtime import WorkerStatus

__all__ = ["EchoRuntime"]


class EchoRuntime:
    """Answers {"text": ...} in chunks of `words` words, each after `delay` seconds.

    Every chunk carries its piece of text; the last one also the values, which are those of the
    request.  `running`, `started` and `cancelled` count inferences; more than `capacity` at once
    are refused with NodeBusy.
    """

    def __init__(self, delay: float = 0.0, words: int = 1_000, capacity: int = 256) -> None:
        self.delay = delay
        self.words = words
        self.capacity = capacity
        self.running = 0
        self.started = 0
        self.cancelled = 0
        self._models: dict[ModelId, trio.Event] = {}  # set once unloaded

    async def load(self, bundle: Bundle) -> ModelInfo:
        """Every bundle will do; its files are not looked at."""
        self._models.setdefault(bundle.id, trio.Event())
        text = TensorSpec("text", "string", ())
        return ModelInfo(bundle.id, "echo", (text,), (text,))

    async def unload(self, model: ModelId) -> None:
        """Running inference on it fails with ModelFailed before its next chunk."""
        if (unloaded := self._models.pop(model, None)) is not None:
            unloaded.set()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """None: it answers itself."""
        return ()

    @asynccontextmanager
    async def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AsyncIterator[AsyncIterator[Chunk | Usage]]:
        """See `Runtime.infer`; an empty text and values without one are refused."""
        if model not in self._models:
            raise ModelNotFound(f"The model {model} is not loaded on this node.")
        text = values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValidationFailed('The model takes {"text": a string that is not empty}.')
        if self.running >= self.capacity:
            raise NodeBusy(f"{self.running} inferences run already.", retry_after=self.delay)
        self.running += 1
        self.started += 1
        answer = _Echo(self, self._models[model], values, text)
        try:
            yield answer
        finally:
            self.running -= 1
            self.cancelled += not answer.finished


class _Echo:
    """One answer; an iterator by hand, so that leaving it early leaves nothing to collect."""

    def __init__(
        self, runtime: EchoRuntime, unloaded: trio.Event, values: Mapping[str, Value], text: str
    ) -> None:
        self._runtime = runtime
        self._unloaded = unloaded
        self._items = _items(values, text, runtime.words)
        self.finished = False

    def __aiter__(self) -> AsyncIterator[Chunk | Usage]:
        return self

    async def __anext__(self) -> Chunk | Usage:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Chunk):
            with trio.move_on_after(self._runtime.delay):
                await self._unloaded.wait()
        if self._unloaded.is_set():
            raise ModelFailed("The model was unloaded before it had answered.")
        self.finished = isinstance(item, Usage)
        return item


def _items(values: Mapping[str, Value], text: str, size: int) -> Iterator[Chunk | Usage]:
    words = text.split(" ")
    pieces = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
    for index, piece in enumerate(pieces[:-1]):
        yield Chunk(index, text=piece + " ")
    yield Chunk(len(pieces) - 1, text=pieces[-1], values=values)
    yield Usage(len(words), len(words), 0.0)
