"""What runs models, as an interface: `worker` (subprocess, onnxruntime) and `echo` (in memory)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.runtime.bundle import Bundle

__all__ = ["Runtime"]


class Runtime(Protocol):
    """Loads bundles and runs inference on them; many at once, each cancellable."""

    async def load(self, bundle: Bundle) -> ModelInfo:
        """Make a bundle ready to serve.  Raises ValidationFailed for what is not a model it can run.

        Loading what is loaded changes nothing.  A cancelled load leaves nothing behind.
        """

    async def unload(self, model: ModelId) -> None:
        """Give its memory back; running inference on it fails with ModelFailed."""

    def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk | Usage]]:
        """Run the model on named values.

        Entering means that the input was checked and accepted (ValidationFailed otherwise,
        ModelNotFound if not loaded, NodeBusy if full).  The iterator gives chunks, then one Usage,
        and ends; ModelFailed if the worker died.  Leaving the block early stops the work.
        """
