"""What a node tells a worker process and what it hears back, as values; `pipe` makes bytes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import WorkerSettings

__all__ = [
    "LOAD",
    "Abilities",
    "Alone",
    "Event",
    "GraphFacts",
    "Infer",
    "Load",
    "Loaded",
    "Order",
    "Probe",
    "Scan",
    "Whole",
]

LOAD = 0
"""The call number of a load, a probe or a scan; inferences count from 1."""


@dataclass(frozen=True, slots=True)
class Load:
    """The first order to a worker: lock yourself in, then open this graph of this bundle.

    `memory` is the most address space in bytes.
    """

    folder: str
    files: tuple[str, ...]
    graph: str
    memory: int
    settings: WorkerSettings


@dataclass(frozen=True, slots=True)
class Infer:
    """Check these values, say Accepted, and run, if need be with others, when it is their turn."""

    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Alone:
    """The call of this number, which comes next, is to share its run with no other."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The only kind of order to a process that checks graphs; all are of one folder."""

    folder: str
    graph: str
    memory: int
    require: SandboxLevel


@dataclass(frozen=True, slots=True)
class Probe:
    """The only order to a process that tells what this machine's workers can do."""

    memory: int


Order: TypeAlias = Load | Infer | Alone | Cancel | Scan | Probe


@dataclass(frozen=True, slots=True)
class Loaded:
    """The answer to a load: `batch` requests may share a run, `resident` bytes are in memory."""

    info: ModelInfo
    level: SandboxLevel
    provider: str
    batch: int
    resident: int


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The answer to a scan: the files with external data, and the kind of arithmetic (see `EXECUTIONS`)."""

    external: tuple[str, ...]
    execution: str


@dataclass(frozen=True, slots=True)
class Abilities:
    """The answer to a probe: how far a worker locks itself in, and what may run its graphs."""

    level: SandboxLevel
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """The answer of a model that gives it in one piece; it says Accepted as well, if nothing did before."""

    values: Mapping[str, Value]
    usage: Usage


Event: TypeAlias = Loaded | GraphFacts | Abilities | Accepted | Chunk | Usage | Whole | MeshError | Cancel
"""Accepted, Chunk*, Usage answer an inference, or one Whole does.

Cancel says that it stopped; a MeshError ends any order.
"""
