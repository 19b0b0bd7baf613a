"""Which way of holding rows suits a graph: found by trying, not by believing.

A graph that takes its positions from the width of the cache, or biases attention by column, gives
other answers when a cache has room to spare; the trial sees that, and such a graph gets rows that
are run one by one.  It also measures what batch-mates do to a row's numbers on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.generation.graph import Array, Floats, Graph, Past
from llmesh.runtime.generation.rows import AppendedRows, InPlaceRows, Rows, SharedRows, columns_for

__all__ = ["Layout", "SeparateRows", "distance", "find_layout"]

_NEXT = 1
_TRIAL_BYTES = 256 << 20
"""A cache larger than this is not made for a trial."""
_SAME = 0.1
"""Relative distance of two logits vectors that are the same but for rounding (4-bit models: 0.02)."""


class SeparateRows:
    """Rows run one by one, each with a cache of exactly its own length: right for every graph, but slow."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._pasts: list[Past] = []
        self._logits = np.zeros((0, graph.vocabulary), np.float32)

    def join(self, past: Past, reserve: int) -> None:
        """See Rows."""
        self._pasts.append(past)

    def leave(self, row: int) -> None:
        """See Rows."""
        self._pasts[row] = self._pasts[-1]
        del self._pasts[-1]

    def step(self, tokens: list[int]) -> Floats:
        """See Rows."""
        found = [self._graph.read([one], past) for one, past in zip(tokens, self._pasts, strict=True)]
        self._pasts = [past for _, past in found]
        self._logits = np.stack([logits for logits, _ in found])
        return self._logits

    def again(self, row: int) -> Floats:
        """See Rows: they were alone already."""
        last: Floats = self._logits[row]
        return last

    def last(self, row: int) -> Array:
        """See Rows."""
        return np.concatenate([one[0, None, :, -1] for one in self._pasts[row]])


@dataclass(frozen=True, slots=True)
class Layout:
    """How a graph's rows are held: `kind` is None where they must be run one by one.

    `noise` is by how much batch-mates were seen to move a logit; the cache itself never moved,
    unless `exact` is False, when answers in company may differ where two tokens are all but equal.
    """

    graph: Graph
    kind: type[SharedRows] | None
    fewest: int = 1
    widest: int = 0
    noise: float = 0.0
    exact: bool = True

    def open_rows(self, limit: int) -> Rows:
        """Room for `limit` rows."""
        return (
            SeparateRows(self.graph)
            if self.kind is None
            else self.kind(self.graph, limit, self.fewest, self.widest)
        )


def find_layout(graph: Graph, limit: int) -> Layout:
    """Try the graph.  Raises ValidationFailed where its cache does not carry on what it has read."""
    # Lengths that need caches of one and of two units of columns, as far as the context allows.
    prompts = [_tokens(graph, min(5 + 7 * n % 45, graph.context - 1)) for n in range(limit)]
    pasts = [_read(graph, one) for one in prompts]
    alone = _read_one(graph, pasts[0])
    if distance(alone, _whole(graph, prompts[0])) > _SAME:
        raise ValidationFailed("The graph's cache does not carry on what it has read: it is no decoder.")
    kind: type[SharedRows] = InPlaceRows if graph.grouped else AppendedRows
    try:
        plain = Layout(graph, kind, 1, graph.context if graph.grouped else _widest(graph))
        if distance(alone, _Trial(plain, pasts[:1]).logits) > _SAME:
            return Layout(graph, None)
        free = _measure(plain, pasts)
        if free.exact:
            return free
        paired = _measure(replace(plain, fewest=2), pasts)
    except ModelFailed:
        return Layout(graph, None)
    return paired if paired.exact else free


class _Trial:
    """One step of some rows: the first row's logits and new cache column, copied out."""

    def __init__(self, layout: Layout, pasts: list[Past]) -> None:
        rows = layout.open_rows(len(pasts))
        for past in pasts:
            rows.join(past, past[0].shape[2] + 1)
        self.logits = rows.step([_NEXT] * len(pasts))[0].copy()
        self.column = rows.last(0).copy()


def _measure(layout: Layout, pasts: list[Past]) -> Layout:
    """Compare the first row in companies of every size with itself alone."""
    alone = _Trial(layout, pasts[:1])
    noise, exact = 0.0, True
    for size in range(2, len(pasts) + 1):
        company = _Trial(layout, pasts[:size])
        noise = max(noise, float(np.abs(company.logits - alone.logits).max()))
        exact = exact and bool((company.column == alone.column).all())
    return replace(layout, noise=noise, exact=exact)


def _widest(graph: Graph) -> int:
    """The columns that rows may have: whole units, unless the graph can take no more than its context.

    Some graphs hold a mask of fixed size; a unit begun would be too much for these.
    """
    wanted = columns_for(graph.context - 1)
    if wanted < graph.context:
        return wanted
    if wanted * graph.token_bytes > _TRIAL_BYTES:
        return graph.context - 1
    past = [np.zeros((1, graph.heads, wanted, graph.head_size), graph.dtype) for _ in graph.past]
    mask = np.zeros((1, wanted + 1), graph.index_type)
    mask[0, -1] = 1
    one = np.zeros((1, 1), graph.index_type)
    try:
        graph.run(["logits"], graph.feed(one, mask, one) | dict(zip(graph.past, past, strict=True)))
    except ModelFailed:
        return graph.context - 1
    return wanted


def _tokens(graph: Graph, count: int) -> list[int]:
    return [(7 + 7919 * n) % graph.vocabulary for n in range(count)]


def _read(graph: Graph, tokens: list[int]) -> Past:
    return graph.read(tokens, graph.empty())[1]


def _read_one(graph: Graph, past: Past) -> Floats:
    return graph.read([_NEXT], past)[0]


def _whole(graph: Graph, tokens: list[int]) -> Floats:
    return graph.read([*tokens, _NEXT], graph.empty())[0]


def distance(one: Floats, other: Floats) -> float:
    """How far logits are from others, in parts of their spread."""
    spread = float(np.linalg.norm(one - one.mean())) or 1.0
    return float(np.linalg.norm(one - other)) / spread
