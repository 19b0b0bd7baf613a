"""What runs models, as an interface: `worker` (subprocess, onnxruntime) and `echo` (in memory)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.sandbox import SandboxLevel

__all__ = ["Runtime", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """How a loaded model is kept: its worker's sandbox, what runs its graph, how many share a run.

    `resident` bytes in memory, 0 where the model rests until its next call, which then waits about
    `load_seconds`; `calls` run or wait.
    """

    model: ModelId
    level: SandboxLevel
    provider: str
    batch: int
    resident: int
    calls: int
    load_seconds: float


class Runtime(Protocol):
    """Loads bundles and runs inference on them; many at once, each cancellable."""

    async def load(self, bundle: Bundle) -> ModelInfo:
        """Make a bundle ready to serve.  Raises ValidationFailed for what is not a model it can run.

        Loading what is loaded changes nothing.  A cancelled load leaves nothing behind.  Raises
        TooLarge for a model over the memory budget, NodeBusy where others are busy in it.
        """

    async def unload(self, model: ModelId) -> None:
        """Give its memory back; running inference on it fails with ModelFailed."""

    def workers(self) -> tuple[WorkerStatus, ...]:
        """How each loaded model is kept at this moment."""

    def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk | Usage]]:
        """Run the model on named values.

        Entering means that the input was checked and accepted (ValidationFailed otherwise,
        ModelNotFound if not loaded, NodeBusy if full).  The iterator gives chunks, then one Usage,
        and ends; ModelFailed if the worker died.  Leaving the block early stops the work.
        """
