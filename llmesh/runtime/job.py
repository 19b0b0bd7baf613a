"""A job: one checked request on the worker's side, and what a model must be to work on such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from llmesh.core.encoding import Value
from llmesh.core.exchange import Cancel
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import TensorSpec
from llmesh.errors import MeshError
from llmesh.runtime.orders import Whole

__all__ = ["Job", "Model", "Outcome"]

Input = TypeVar("Input")
"""What a model makes of the values of one request."""


@dataclass(slots=True, eq=False)
class Job(Generic[Input]):
    """A request that was accepted; `alone` where its run must be its own."""

    call: int
    input: Input
    alone: bool = False


Outcome = Chunk | Usage | Whole | MeshError | Cancel
"""What a step says of a job; all but a Chunk end it."""


class Model(Protocol[Input]):
    """A model in a worker: requests come and go between steps.

    `check` and `leave` are called by the thread that listens, also while a step runs; `take` and
    `step` by one thread at a time.
    """

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]

    @property
    def batch(self) -> int:
        """How many requests may share a step."""

    @property
    def busy(self) -> bool:
        """Whether a step would do something even if no job joined."""

    @property
    def quick(self) -> bool:
        """Whether what was last taken will be answered so soon that nobody need listen meanwhile."""

    def check(self, values: Mapping[str, Value]) -> Input:
        """What the model makes of a request.  Raises ValidationFailed, TooLarge, NodeBusy."""

    def take(self, waiting: Sequence[Job[Input]]) -> list[Job[Input]]:
        """Which of those that wait, the oldest first, are to join the next step."""

    def step(self, joining: Sequence[Job[Input]]) -> Iterable[tuple[Job[Input], Outcome]]:
        """Go on with all that joined and did not end; what there is to say of each."""

    def leave(self, job: Job[Input]) -> bool:
        """A job's caller has gone.  False where the model will say Cancel of it when it has stopped."""
