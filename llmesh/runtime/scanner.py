"""The static check from outside: asked of a process of its own, which a hostile file may well kill.

The process locks itself in, reads graphs with `onnx` (see `scan`) and ends; nothing that it says is
believed beyond a list of names inside the bundle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import trio

from llmesh.errors import MeshError, ModelFailed, ValidationFailed
from llmesh.runtime.orders import LOAD, GraphFacts, Scan
from llmesh.runtime.pipe import encode_order
from llmesh.runtime.process import WorkerEnded, WorkerProcess, open_worker
from llmesh.runtime.sandbox import SandboxLevel

__all__ = ["ScanGraph", "open_scanner", "scan_bundle_graph"]

SCAN_SECONDS = 60.0
"""A graph that is not read by then is refused."""

_MEMORY = 1 << 30
"""Address space for the libraries; a graph may take eight times its own size on top."""

ScanGraph: TypeAlias = Callable[[str], Awaitable[GraphFacts | MeshError]]


async def scan_bundle_graph(
    folder: Path, graph: str, require: SandboxLevel = SandboxLevel.NONE
) -> GraphFacts:
    """Check one graph in a process of its own.

    Raises ValidationFailed, naming the file, for what must not be loaded, also where reading it
    kills the process or takes too long, and where the sandbox does not reach `require`;
    ModelFailed where no process can be started.
    """
    try:
        async with open_scanner(folder, graph, require) as scan:
            facts = await scan(graph)
    except OSError as error:
        raise ModelFailed(f"No process could be started for {graph}: {error.strerror}.") from None
    if isinstance(facts, MeshError):
        raise facts
    return facts


@asynccontextmanager
async def open_scanner(
    folder: Path, largest: str, require: SandboxLevel = SandboxLevel.NONE
) -> AsyncIterator[ScanGraph]:
    """A process that checks graphs of one folder, one after the other, and is gone afterwards.

    What is wrong with a graph is returned.  `largest` is the graph that sets the memory.  Raises
    OSError.
    """
    memory = _MEMORY + 8 * (await trio.Path(folder / largest).stat()).st_size
    async with open_worker() as worker:
        yield lambda graph: _scan(worker, Scan(str(folder), graph, memory, require))


async def _scan(worker: WorkerProcess, order: Scan) -> GraphFacts | MeshError:
    try:
        with trio.fail_after(SCAN_SECONDS):
            await worker.send(encode_order(LOAD, order))
            _, event = await worker.receive()
    except trio.TooSlowError:
        return ValidationFailed(f"{order.graph} was not read within {SCAN_SECONDS:.0f} s.")
    except WorkerEnded as end:
        return ValidationFailed(
            f"Reading {order.graph} killed the process that checks it: {end}{worker.last_complaint()}."
        )
    if isinstance(event, GraphFacts | MeshError):
        return event
    return ValidationFailed(f"The process that checks {order.graph} broke its protocol.")
