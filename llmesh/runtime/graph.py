"""An ONNX graph opened by onnxruntime, on the worker's side: its signature, and one run at a time.

Threads are explicit and never spin, so that an idle node is idle; nothing is logged and nothing is
reported to anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from llmesh.core.model import TensorSpec
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.orders import Abilities
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import PROVIDERS

__all__ = ["Array", "Graph", "Stop", "abilities", "warm_up"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_FAULTS = (
    state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph,
    state.InvalidProtobuf, state.NoModel, state.NoSuchFile, state.NotImplemented,
    state.RuntimeException, RuntimeError, ValueError, MemoryError,
)  # fmt: skip
"""What onnxruntime raises; its own classes have no base below Exception."""

_DTYPES = {"float": "float32", "double": "float64"}
_NUMPY = {
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64", "string",
}  # fmt: skip
_FATAL = 4
_WARM_UP_SECONDS = 20.0


ort.set_default_logger_severity(_FATAL)
if hasattr(ort, "disable_telemetry_events"):  # not in every build
    ort.disable_telemetry_events()


class Stop:
    """Ends one run from another thread, between two nodes of the graph; good for that run only."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.options.log_severity_level = _FATAL
        # Otherwise the memory of the largest run so far is never given back; measured to cost nothing.
        self.options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def set(self) -> None:
        """The run ends within the node that it is in; one not yet begun ends at once."""
        self.options.terminate = True

    def is_set(self) -> bool:
        """Whether it was told to end."""
        return bool(self.options.terminate)


@contextmanager
def warm_up() -> Iterator[Stop]:
    """For first runs that nobody waits for: they end after some seconds, should one go on and on."""
    stop = Stop()
    timer = threading.Timer(_WARM_UP_SECONDS, stop.set)
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


class Graph:
    """One loaded ONNX file.  Raises ValidationFailed for what onnxruntime cannot open."""

    def __init__(self, path: Path, name: str, threads: int, provider: str = "cpu") -> None:
        _check_provider(provider)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(path, options, providers=_providers(provider))
            self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
            self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        except _FAULTS as error:
            reason = _one_line(error).replace(str(path), name).replace(str(path.parent), "")
            raise ValidationFailed(f"{name} is not a model that onnxruntime can run: {reason}.") from None
        if PROVIDERS[provider] not in self._session.get_providers():  # it falls back without a word
            raise ValidationFailed(f"This node is set to run models by {provider}, which did not start here.")

    def run(self, feeds: Mapping[str, Array], stop: Stop, *wanted: str) -> dict[str, Any]:
        """Outputs by name, all unless some are named.  Raises ModelFailed; a stopped run does as well."""
        names = wanted or [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds), stop.options), strict=True))
        except _FAULTS as error:
            raise ModelFailed(f"The model failed on this input: {_one_line(error)}.") from None


def abilities(level: SandboxLevel) -> Abilities:
    """What this process can do."""
    there = ort.get_available_providers()
    return Abilities(level, tuple(name for name, own in PROVIDERS.items() if own in there))


def _check_provider(provider: str) -> None:
    if PROVIDERS[provider] not in (there := ort.get_available_providers()):
        raise ValidationFailed(
            f"This node is set to run models by {provider}, which its onnxruntime cannot; it has"
            f" {', '.join(there)}. For cuda, install the extra [cuda] instead of [node]."
        )


def _providers(provider: str) -> list[str]:
    """The CPU takes what the other cannot run."""
    return list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]]))


def _spec(node: Any) -> TensorSpec:
    """onnxruntime writes a type as `tensor(float)`, an unknown length as None or below 0."""
    word = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(word, word)
    if not node.type.startswith("tensor(") or dtype not in _NUMPY:
        raise ValidationFailed(f"{node.name} of the graph is a {node.type}, which has no place in a request.")
    lengths = (n if isinstance(n, str) or (isinstance(n, int) and n >= 0) else "?" for n in node.shape)
    return TensorSpec(node.name, dtype, tuple(lengths))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ")
