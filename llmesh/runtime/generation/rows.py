"""Rows that decode together, and where their keys and values lie.

Every row's tokens lie in columns 0, 1, 2... of its own cache and nothing moves when another row
comes or goes.  That is what makes a row's numbers the same to the last bit whoever shares its
batch: padding on the left, the usual way, shifts a row by what its longest mate happens to be,
sums round otherwise, and a graph with 8-bit activations turns that last bit into 0.3 of a logit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np

from llmesh.runtime.generation.graph import Array, Floats, Graph, Past, failure

__all__ = ["AppendedRows", "InPlaceRows", "Rows", "SharedRows", "columns_for", "rows_for"]

COLUMNS = 32
"""Capacities are multiples of this, so that zeros fill whole vector registers (16 floats at most)."""


def columns_for(tokens: int) -> int:
    """The capacity, in columns, of a cache that must hold `tokens`."""
    return -(-tokens // COLUMNS) * COLUMNS


def rows_for(count: int) -> int:
    """The capacity, in rows, of a cache that must hold `count`."""
    return 1 << max(count - 1, 0).bit_length()


class Rows(Protocol):
    """Rows that take one step together, numbered from 0."""

    def join(self, past: Past, reserve: int) -> None:
        """Add a row that has read `past` and will hold at most `reserve` tokens."""

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""

    def step(self, tokens: list[int]) -> Floats:
        """Read one token in every row: the logits `[rows, vocabulary]`, valid until the next step.

        Raises ModelFailed where onnxruntime does; the rows are then of no more use.
        """

    def again(self, row: int) -> Floats:
        """The last step of one row by itself: `[vocabulary]`, as if it had no mates."""

    def last(self, row: int) -> Array:
        """The keys and values of the row's newest token, `[tensors, heads, head_size]`."""


class SharedRows(ABC):
    """Up to `limit` rows in one cache `[tensors, rows, heads, columns, head_size]`.

    `fewest` is how many rows a run has at least; a row that is alone gets an empty mate where
    onnxruntime computes one row by another kernel than several.  `widest` bounds the columns.
    """

    def __init__(self, graph: Graph, limit: int, fewest: int, widest: int) -> None:
        self.graph = graph
        self.widest = widest
        self.limit = limit
        self.fewest = fewest
        self.count = 0
        self._lengths = np.zeros(max(limit, fewest), np.int64)
        self._reserved = np.zeros(max(limit, fewest), np.int64)
        self._ids = np.zeros((max(limit, fewest), 1), graph.index_type)
        self._places = np.zeros((max(limit, fewest), 1), graph.index_type)
        self._cache = np.zeros((len(graph.past), 0, graph.heads, COLUMNS, graph.head_size), graph.dtype)
        self._mask = np.zeros((0, 0), graph.index_type)
        self._logits = np.zeros((0, 1, graph.vocabulary), graph.logits_type)
        self._inputs: dict[str, Array] = {}
        self._binding: Any = None

    def join(self, past: Past, reserve: int) -> None:
        """See Rows."""
        row, tokens = self.count, past[0].shape[2]
        self.count += 1
        self._lengths[row] = tokens
        self._reserved[row] = reserve
        self._fit()
        for tensor, one in zip(self._cache, past, strict=True):
            tensor[row, :, :tokens] = one[0]
            # What another row left behind is masked, but 0 times not-a-number would still be that.
            tensor[row, :, tokens:] = 0
        self._binding = None

    def leave(self, row: int) -> None:
        """See Rows."""
        self.count -= 1
        last = self.count
        if row != last:
            used = self._lengths[last]
            self._cache[:, row, :, :used] = self._cache[:, last, :, :used]
            self._cache[:, row, :, used:] = 0
        for values in (self._lengths, self._reserved):
            values[row], values[last] = values[last], 0
        self._fit()
        self._binding = None

    def step(self, tokens: list[int]) -> Floats:
        """See Rows."""
        self._ids[: self.count, 0] = tokens
        self._fit()
        if self._binding is None:
            self._bind()
        try:
            self.graph.session.run_with_iobinding(self._binding)
        except Exception as error:
            raise failure(error) from None
        self._settle()
        return self._logits[: self.count, -1].astype(np.float32, copy=False)

    def again(self, row: int) -> Floats:
        """See Rows."""
        graph, one = self.graph, slice(row, row + 1)
        feed = graph.feed(self._ids[one], self._mask_at(self._lengths[one] - 1), self._places[one] - 1)
        past = {name: tensor[one] for name, tensor in zip(graph.past, self._cache, strict=True)}
        return np.asarray(graph.run(["logits"], feed | past)[0][0, -1], np.float32)

    def last(self, row: int) -> Array:
        """See Rows."""
        found: Array = self._cache[:, row, :, self._lengths[row] - 1]
        return found

    @abstractmethod
    def _columns(self) -> int:
        """The columns wanted now."""

    @abstractmethod
    def _mask_at(self, lengths: Array) -> Array:
        """The attention mask of a step of rows that hold `lengths` tokens."""

    @abstractmethod
    def _bind_present(self, binding: Any, rows: int) -> None:
        """Say where the graph leaves the cache with the new token in it."""

    @abstractmethod
    def _settle(self) -> None:
        """Take the new token of every row into the cache and count it."""

    def _fit(self) -> None:
        """Lay the cache out anew where it has not the wanted rows and columns."""
        columns, rows = min(self._columns(), self.widest), rows_for(max(self.count, self.fewest))
        had = self._cache.shape
        if (rows, columns) == (had[1], had[3]):
            return
        cache = np.zeros((had[0], rows, had[2], columns, had[4]), self.graph.dtype)
        kept, used = min(rows, had[1]), min(columns, had[3])
        cache[:, :kept, :, :used] = self._cache[:, :kept, :, :used]
        self._cache = cache
        self._binding = None

    def _bind(self) -> None:
        graph, rows = self.graph, max(self.count, self.fewest)
        self._places[:rows, 0] = self._lengths[:rows]
        self._mask = self._mask_at(self._lengths[:rows])
        if self._logits.shape[0] != rows:
            self._logits = np.zeros((rows, 1, graph.vocabulary), graph.logits_type)
        binding = graph.session.io_binding()
        # The binding holds addresses only: these arrays must live as long as it does.
        self._inputs = graph.feed(self._ids[:rows], self._mask, self._places[:rows])
        past = zip(graph.past, self._cache[:, :rows], strict=True)
        for name, value in (*self._inputs.items(), *past):
            _bind_input(binding, name, value)
        _bind_output(binding, "logits", self._logits)
        self._bind_present(binding, rows)
        self._binding = binding


class InPlaceRows(SharedRows):
    """For GroupQueryAttention: past and present are one buffer, the mask's row sums are the lengths."""

    def _columns(self) -> int:
        return columns_for(max(1, int(np.max(self._reserved[: self.count], initial=1))))

    def _mask_at(self, lengths: Array) -> Array:
        columns = np.arange(self._cache.shape[3])
        return (columns <= lengths[:, None]).astype(self.graph.index_type)

    def _bind_present(self, binding: Any, rows: int) -> None:
        for name, tensor in zip(self.graph.present, self._cache[:, :rows], strict=True):
            _bind_output(binding, name, tensor)

    def _settle(self) -> None:
        rows, lengths = np.arange(self.count), self._lengths[: self.count]
        lengths += 1
        # The mask of the next step holds its own token too; a full row has no next step.
        self._mask[rows, np.minimum(lengths, self._mask.shape[1] - 1)] = 1
        self._places[: self.count, 0] = lengths


class AppendedRows(SharedRows):
    """For graphs that append: the new token comes out in the column after the last and is put in its place.

    The columns between a row's end and the capacity are masked; the row's true position goes in
    by `position_ids`, or by the mask's running sum where the graph has no such input.
    """

    def __init__(self, graph: Graph, limit: int, fewest: int, widest: int) -> None:
        super().__init__(graph, limit, fewest, widest)
        self._present = np.zeros(0, graph.dtype)
        self._out = self._cache

    def _columns(self) -> int:
        return columns_for(int(np.max(self._lengths[: self.count], initial=0)) + 1)

    def _mask_at(self, lengths: Array) -> Array:
        columns = self._cache.shape[3]
        mask = np.arange(columns + 1) < lengths[:, None]
        mask[:, columns] = True
        return mask.astype(self.graph.index_type)

    def _bind_present(self, binding: Any, rows: int) -> None:
        tensors, _, heads, columns, size = self._cache.shape
        shape = (tensors, rows, heads, columns + 1, size)
        wanted = int(np.prod(shape))
        if not wanted <= self._present.size <= 4 * wanted:
            self._present = np.empty(wanted, self.graph.dtype)
        self._out = self._present[:wanted].reshape(shape)
        for name, tensor in zip(self.graph.present, self._out, strict=True):
            _bind_output(binding, name, tensor)

    def _settle(self) -> None:
        rows, lengths = np.arange(self.count), self._lengths[: self.count]
        self._cache[:, rows, :, lengths] = self._out[:, : self.count, :, -1].swapaxes(0, 1)
        self._mask[rows, lengths] = 1
        lengths += 1
        self._places[: self.count, 0] = lengths


def _bind_input(binding: Any, name: str, value: Array) -> None:
    binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)


def _bind_output(binding: Any, name: str, value: Array) -> None:
    binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
