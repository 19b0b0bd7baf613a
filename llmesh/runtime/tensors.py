"""Raw tensors by name, on the worker's side: what a graph takes and gives, as it is.

Requests whose tensors have the same shapes but for the first axis share a run (see `stacking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmesh.core.encoding import Tensor, Value
from llmesh.core.model import RAW_TENSORS, TensorSpec
from llmesh.errors import ModelFailed, TooLarge, ValidationFailed
from llmesh.runtime.graph import Array, Graph, Stop, warm_up
from llmesh.runtime.pipe import MAX_BODY
from llmesh.runtime.stacking import Feeds, Outputs, rows_are_apart, split, stack, stackable

__all__ = ["RawTensors"]

# What a list of JSON values looks like to numpy -> what it may become.
_BECOMES = {"f": "f", "i": "fiu", "u": "fiu", "b": "b"}


class RawTensors:
    """A graph whose inputs the caller names: each a Tensor, or numbers in nested lists."""

    task = RAW_TENSORS
    labels: tuple[str, ...] = ()

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self._stacked = stackable(graph.inputs, graph.outputs)

    def check(self, values: Mapping[str, Value]) -> Feeds:
        """The graph's inputs.  Raises ValidationFailed, naming the expected signature."""
        wanted = {spec.name: spec for spec in self.inputs}
        if values.keys() != wanted.keys():
            raise self._mismatch(f"it got {_listed(values)}")
        arrays = {name: self._array(spec, values[name]) for name, spec in wanted.items()}
        return Feeds.of(arrays, stacked=self._stacked)

    def answer(self, inputs: Sequence[Feeds], stop: Stop) -> list[dict[str, Value]]:
        """One Tensor per output, lists for texts.  Raises ModelFailed, TooLarge."""
        return [self._named(outputs) for outputs in self._run(inputs, stop)]

    def _run(self, inputs: Sequence[Feeds], stop: Stop) -> list[Outputs]:
        return split(self._graph.run(stack(inputs), stop), inputs)

    def _named(self, outputs: Outputs) -> dict[str, Value]:
        size = sum(array.nbytes for array in outputs.values())
        if size > MAX_BODY:
            raise TooLarge(f"The model's answer takes {size:,} bytes, more than {MAX_BODY:,}.")
        return {spec.name: _value(spec, outputs[spec.name]) for spec in self.outputs}

    def batches(self) -> bool:
        """See `stacking.rows_are_apart`."""
        if not self._stacked:
            return False
        try:
            with warm_up() as stop:
                return rows_are_apart(self.inputs, lambda requests: self._run(requests, stop))
        except ModelFailed:
            return False

    def _array(self, spec: TensorSpec, value: Value) -> Array:
        try:
            array = _from_tensor(spec, value) if isinstance(value, Tensor) else _from_json(spec, value)
        except (ValueError, OverflowError, RecursionError) as error:
            raise self._mismatch(f"{spec.name} {error}") from None
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(length, str) or length == n for length, n in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise self._mismatch(f"{spec.name} has the shape {list(array.shape)}")
        return array

    def _mismatch(self, what: str) -> ValidationFailed:
        return ValidationFailed(f"The model takes {_signature(self.inputs)}; {what}."[:2_000])


def _signature(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) if specs else "no input"


def _listed(values: Mapping[str, Value]) -> str:
    return ", ".join(sorted(repr(name[:80]) for name in values)[:20]) or "nothing"


def _from_tensor(spec: TensorSpec, value: Tensor) -> Array:
    if value.dtype != spec.dtype:
        raise ValueError(f"has the dtype {value.dtype}")
    little_endian = np.dtype(value.dtype).newbyteorder("<")
    array = np.frombuffer(value.data, little_endian).reshape(value.shape)
    if value.dtype == "bool":  # any byte but 0 and 1 would be no bool
        array = array.view(np.uint8) != 0
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_json(spec: TensorSpec, value: Value) -> Array:
    try:
        given = np.array(value)
    except ValueError:
        raise ValueError("is ragged: lists of one level must be of one length") from None
    if spec.dtype == "string":
        if given.dtype.kind != "U" or not _all_texts(value):
            raise ValueError("holds what is no text")
        return np.array(value, dtype=object)
    dtype = np.dtype(spec.dtype)
    if given.size == 0:
        return np.zeros(given.shape, dtype)
    if dtype.kind not in _BECOMES.get(given.dtype.kind, ""):
        raise ValueError(f"holds values that are no {spec.dtype}")
    if dtype.kind in "iu" and not (np.iinfo(dtype).min <= given.min() and given.max() <= np.iinfo(dtype).max):
        raise ValueError(f"holds a number out of the range of {spec.dtype}")
    return _as_floats(given, dtype) if dtype.kind == "f" else given.astype(dtype)


def _as_floats(given: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        array = given.astype(dtype)
    if not np.array_equal(np.isinf(array), np.isinf(given)):
        raise ValueError(f"holds a number out of the range of {dtype.name}")
    return array


def _all_texts(value: Value) -> bool:
    return all(map(_all_texts, value)) if isinstance(value, list) else isinstance(value, str)


def _value(spec: TensorSpec, array: Array) -> Value:
    if spec.dtype == "string":
        texts: Value = array.tolist()
        return texts
    shape = tuple(array.shape)
    return Tensor(spec.dtype, shape, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
