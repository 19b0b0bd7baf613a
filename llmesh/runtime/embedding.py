"""A vector for a text, on the worker's side, as sentence-transformers makes it from a graph's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmesh.core.encoding import Json, Tensor, Value
from llmesh.core.model import EMBEDDINGS, TensorSpec
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.graph import Array, Graph, Stop
from llmesh.runtime.text import TextReader, Tokens

__all__ = ["SENTENCE_OUTPUT", "TOKEN_OUTPUTS", "Embedder", "Pooling", "pooling_of"]

SENTENCE_OUTPUT = "sentence_embedding"
"""The output of a graph that has the pooling in it; it is taken as it is."""

TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")


def _mean(states: Array, lengths: Array) -> Array:
    inside = np.arange(states.shape[1])[None, :] < lengths[:, None]
    mean: Array = (states * inside[:, :, None]).sum(axis=1) / lengths[:, None]
    return mean


def _first(states: Array, _lengths: Array) -> Array:
    first: Array = states[:, 0]
    return first


def _last(states: Array, lengths: Array) -> Array:
    last: Array = states[np.arange(len(states)), lengths - 1]
    return last


def _largest(states: Array, lengths: Array) -> Array:
    inside = np.arange(states.shape[1])[None, :] < lengths[:, None]
    largest: Array = np.where(inside[:, :, None], states, -np.inf).max(axis=1)
    return largest


# The words of sentence-transformers' 1_Pooling/config.json.
_POOLINGS: dict[str, Callable[[Array, Array], Array]] = {
    "mean": _mean, "mean_tokens": _mean, "cls": _first, "cls_token": _first, "max": _largest,
    "max_tokens": _largest, "lasttoken": _last,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the states of a text's tokens become one vector, and whether that gets the length 1."""

    pool: Callable[[Array, Array], Array] = _mean
    normalise: bool = True


def pooling_of(config: Mapping[str, Json], modules: Json) -> Pooling:
    """From the contents of `1_Pooling/config.json` and `modules.json`; mean and length 1 where there is none.

    Raises ValidationFailed for a pooling that is not known here.
    """
    named = config.get("pooling_mode")
    flags = [word.removeprefix("pooling_mode_") for word, value in config.items() if value is True]
    wanted = [named] if isinstance(named, str) else [word for word in flags if word != "include_prompt"]
    if not wanted:
        wanted = ["mean"]
    if len(wanted) > 1 or wanted[0] not in _POOLINGS:
        raise ValidationFailed(
            f"1_Pooling/config.json asks for {', '.join(wanted)[:200]};"
            f" one of {', '.join(_POOLINGS)} can be done."
        )
    parts = modules if isinstance(modules, list) else []
    kinds = [part.get("type") for part in parts if isinstance(part, dict)]
    normalise = not kinds or any(isinstance(kind, str) and kind.endswith("Normalize") for kind in kinds)
    return Pooling(_POOLINGS[wanted[0]], normalise)


class Embedder:
    """One vector of 32-bit floats a text."""

    task = EMBEDDINGS
    labels: tuple[str, ...] = ()

    def __init__(self, graph: Graph, reader: TextReader, pooling: Pooling) -> None:
        """Raises ValidationFailed where the graph gives no states of tokens."""
        outputs = {spec.name: spec for spec in graph.outputs}
        name = next((name for name in (SENTENCE_OUTPUT, *TOKEN_OUTPUTS) if name in outputs), None)
        rank = 2 if name == SENTENCE_OUTPUT else 3
        if name is None or len(outputs[name].shape) != rank:
            known = ", ".join((SENTENCE_OUTPUT, *TOKEN_OUTPUTS))
            raise ValidationFailed(f"The graph has none of the outputs of an embedding model: {known}.")
        self.inputs = reader.inputs
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("embedding", "float32", outputs[name].shape[-1:]),)
        self._graph = graph
        self._reader = reader
        self._pooling = pooling
        self._output = outputs[name]

    def check(self, values: Mapping[str, Value]) -> Tokens:
        """Raises ValidationFailed for what is no text or too long a one."""
        return self._reader.read(values)

    def answer(self, inputs: Sequence[Tokens], stop: Stop) -> list[dict[str, Value]]:
        """`embedding`, a vector.  Raises ModelFailed."""
        rows = self._vectors(inputs, stop).astype("<f4", copy=False)
        return [{"embedding": Tensor("float32", row.shape, row.tobytes())} for row in rows]

    def batches(self) -> bool:
        """See `TextReader.rows_are_apart`."""
        return self._reader.rows_are_apart((self._output,), self._vectors)

    def _vectors(self, inputs: Sequence[Tokens], stop: Stop) -> Array:
        feeds = self._reader.feeds(inputs)
        vectors: Array = self._graph.run(feeds, stop, self._output.name)[self._output.name]
        if self._output.name != SENTENCE_OUTPUT:
            vectors = self._pooled(vectors, next(iter(feeds.values())).shape, inputs)
        if vectors.ndim != 2 or len(vectors) != len(inputs) or not np.isfinite(vectors).all():
            raise ModelFailed("The model gave no finite vector for each text.")
        return vectors

    def _pooled(self, states: Array, shape: tuple[int, ...], inputs: Sequence[Tokens]) -> Array:
        if states.ndim != 3 or states.shape[:2] != shape:
            raise ModelFailed("The model gave no state for each token.")
        vectors = self._pooling.pool(
            states.astype(np.float32, copy=False), np.array([len(one) for one in inputs])
        )
        if self._pooling.normalise:
            lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
            vectors = vectors / np.maximum(lengths, 1e-12)
        return vectors
