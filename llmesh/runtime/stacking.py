"""Stacking: requests of raw tensors that share a run, one below the other along the first axis.

A free first axis does not say that the rows along it have nothing to do with each other, so a graph
is tried before it is trusted with that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmesh.core.model import TensorSpec
from llmesh.errors import ModelFailed
from llmesh.runtime.graph import Array

__all__ = ["Feeds", "Outputs", "Run", "rows_are_apart", "split", "stack", "stackable"]

_MOST_BYTES = 1 << 20  # of input; what is larger gains nothing by company
_FREE_LENGTHS = (4, 9)  # in the trial, of axes whose length is free
_UNNAMED = "?"


@dataclass(frozen=True, slots=True, eq=False)
class Feeds:
    """A graph's inputs for one request, `rows` long; see `batches.Request` for the others."""

    arrays: Mapping[str, Array]
    rows: int
    group: Hashable
    tokens: int = 0

    def __len__(self) -> int:
        return self.rows

    @classmethod
    def of(cls, arrays: Mapping[str, Array], *, stacked: bool) -> Feeds:
        """`stacked` where the first axis of each array is that of its rows."""
        if not stacked:
            return cls(arrays, 1, tuple(array.shape for array in arrays.values()))
        rows = {array.shape[0] for array in arrays.values()}
        if len(rows) > 1 or 0 in rows or sum(array.nbytes for array in arrays.values()) > _MOST_BYTES:
            return cls(arrays, 1, None)
        return cls(arrays, rows.pop(), tuple(array.shape[1:] for array in arrays.values()))


Outputs = Mapping[str, Array]
Run = Callable[[Sequence[Feeds]], list[Outputs]]
"""The outputs of each request, from one run of the graph."""


def stackable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether all tensors have a first axis of free length that is no other axis as well."""
    specs = (*inputs, *outputs)
    if not inputs or not all(spec.shape and isinstance(spec.shape[0], str) for spec in specs):
        return False
    others = {length for spec in specs for length in spec.shape[1:]} - {_UNNAMED}
    return all(spec.shape[0] not in others for spec in specs)


def stack(requests: Sequence[Feeds]) -> Mapping[str, Array]:
    """The inputs of all of them, which are of one group."""
    if len(requests) == 1:
        return requests[0].arrays
    return {name: np.concatenate([one.arrays[name] for one in requests]) for name in requests[0].arrays}


def split(outputs: Outputs, requests: Sequence[Feeds]) -> list[Outputs]:
    """To each its own.  Raises ModelFailed where the rows do not add up."""
    if len(requests) == 1:
        return [outputs]
    ends = [0, *np.cumsum([len(one) for one in requests]).tolist()]
    if any(array.shape[:1] != (ends[-1],) for array in outputs.values()):
        raise ModelFailed("The model gave more rows than it got, or fewer.")
    return [{name: array[a:b] for name, array in outputs.items()} for a, b in pairwise(ends)]


def rows_are_apart(inputs: Sequence[TensorSpec], run: Run) -> bool:
    """Whether the graph, tried with one row and two more, answers each request as it does alone.

    Raises ModelFailed where it does not run on what it is tried with.
    """
    samples = [[_sample(inputs, rows, free) for rows in (1, 2)] for free in _FREE_LENGTHS]
    return all(one.group is not None for pair in samples for one in pair) and all(
        _alike(one[name], other[name])
        for pair in samples
        for one, other in zip((run([alone])[0] for alone in pair), run(pair), strict=True)
        for name in one
    )


def _sample(inputs: Sequence[TensorSpec], rows: int, free: int) -> Feeds:
    """Values of no meaning."""
    random = np.random.default_rng(rows + free)
    arrays = {}
    for spec in inputs:
        shape = (rows, *(n if isinstance(n, int) else free for n in spec.shape[1:]))
        arrays[spec.name] = _drawn(random, spec.dtype, shape)
    return Feeds.of(arrays, stacked=True)


def _drawn(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Empty, and so never stacked, where the graph asks for very much."""
    if math.prod(shape) > _MOST_BYTES:
        shape = (0,)
    if dtype == "string":
        return random.choice(np.array(["a", "bc"], dtype=object), shape)
    if np.dtype(dtype).kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)  # what may be an index is one of any table


def _alike(one: Array, other: Array) -> bool:
    """Up to the order in which floats are summed; what is quantised anew for each batch is not alike."""
    if one.shape != other.shape or one.dtype.kind != "f":
        return np.array_equal(one, other)
    room = 1e-4 * (1 + float(np.abs(one).max(initial=0, where=np.isfinite(one))))
    return np.allclose(one, other, rtol=0, atol=room, equal_nan=True)
