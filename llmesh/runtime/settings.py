"""What an operator may set about workers; the defaults suit a shared machine without a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from llmesh.errors import ValidationFailed
from llmesh.runtime.memory import machine_memory
from llmesh.runtime.sandbox import SandboxLevel

__all__ = ["PROVIDERS", "WorkerSettings", "address_space"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""onnxruntime's names of what may run a graph.

Only `cpu` has been run on real hardware.  For `cuda` give `memory` as well, since a GPU's driver
reserves far more address space than it uses, and expect the sandbox to need rules for its devices.
"""

_LIBRARIES = 2 << 30
"""Address space that Python, numpy and onnxruntime reserve (0.9 GiB measured) and that a run may add."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How each model is run.

    `threads` per model; `max_batch` requests and `batch_tokens` tokens, padding included, in one
    run; `window` seconds to wait for more before a run starts (0 on a CPU; a GPU gains by 1-5 ms);
    `provider` one of PROVIDERS; `memory` bytes of address space per worker, by default from the
    sizes of its files; `require` the sandbox below which no model is opened.
    """

    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))
    max_batch: int = 8
    batch_tokens: int = 4_096
    window: float = 0.0
    provider: str = "cpu"
    memory: int | None = None
    require: SandboxLevel = SandboxLevel.NONE

    def __post_init__(self) -> None:
        if min(self.threads, self.max_batch, self.batch_tokens) < 1 or not 0 <= self.window <= 1:
            raise ValidationFailed("threads, max_batch and batch_tokens start at 1, window is 0 to 1 s.")
        if self.provider not in PROVIDERS:
            raise ValidationFailed(f"provider must be one of {', '.join(PROVIDERS)}, not {self.provider!r}.")


def address_space(settings: WorkerSettings, size: int) -> int:
    """Bytes that a worker whose model has files of `size` bytes may map; never more than the machine has."""
    return min(settings.memory or _LIBRARIES + 4 * size, max(machine_memory(), _LIBRARIES))
