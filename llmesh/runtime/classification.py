"""Labels for a text, or for each of its tokens, on the worker's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmesh.core.encoding import Json, Value
from llmesh.core.model import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, TensorSpec
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.graph import Array, Graph, Stop
from llmesh.runtime.text import TextReader, Tokens, labels_of

__all__ = ["TextClassifier", "TokenClassifier"]

_LOGITS = "logits"


class TextClassifier:
    """Softmax over the labels, or a sigmoid each where the model says that several may apply."""

    task = TEXT_CLASSIFICATION

    def __init__(self, graph: Graph, reader: TextReader, config: Mapping[str, Json]) -> None:
        """Raises ValidationFailed where graph and labels do not belong together."""
        self.labels = labels_of(config)
        self.inputs = reader.inputs
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("label", "string", ()),
            TensorSpec("score", "float32", ()),
            TensorSpec("scores", "float32", (len(self.labels),)),
        )
        self._graph = graph
        self._reader = reader
        several = config.get("problem_type") == "multi_label_classification"
        self._scores = _sigmoid if several or len(self.labels) == 1 else _softmax
        _check_labels(graph, self.labels)

    def check(self, values: Mapping[str, Value]) -> Tokens:
        """Raises ValidationFailed for what is no text or too long a one."""
        return self._reader.read(values)

    def answer(self, inputs: Sequence[Tokens], stop: Stop) -> list[dict[str, Value]]:
        """Label, its score and the scores of all, from 0 to 1.  Raises ModelFailed."""
        return [self._named(row) for row in self._scores(self._logits(inputs, stop))]

    def tokens(self, input: Tokens) -> int:
        """Tokens read, the special ones around the text included."""
        return len(input)

    def batches(self) -> bool:
        """See `TextReader.rows_are_apart`."""
        return self._reader.rows_are_apart(self._graph.outputs, self._logits)

    def _logits(self, inputs: Sequence[Tokens], stop: Stop) -> Array:
        logits: Array = self._graph.run(self._reader.feeds(inputs), stop)[_LOGITS]
        if logits.shape != (len(inputs), len(self.labels)) or not np.isfinite(logits).all():
            raise ModelFailed("The model gave no finite score for each of its labels.")
        return logits.astype(np.float64)

    def _named(self, row: Array) -> dict[str, Value]:
        scores: list[float] = row.tolist()
        best = int(row.argmax())
        named: dict[str, Json] = dict(zip(self.labels, scores, strict=True))
        return {"label": self.labels[best], "score": scores[best], "scores": named}


class TokenClassifier:
    """The best label of each token, with where in the text the token stands."""

    task = TOKEN_CLASSIFICATION
    outputs: tuple[TensorSpec, ...] = (TensorSpec("tokens", "string", ("tokens",)),)

    def __init__(self, graph: Graph, reader: TextReader, config: Mapping[str, Json]) -> None:
        """Raises ValidationFailed where graph and labels do not belong together."""
        self.labels = labels_of(config)
        self.inputs = reader.inputs
        self._graph = graph
        self._reader = reader
        _check_labels(graph, self.labels)

    def check(self, values: Mapping[str, Value]) -> Tokens:
        """Raises ValidationFailed for what is no text or too long a one."""
        return self._reader.read(values)

    def answer(self, inputs: Sequence[Tokens], stop: Stop) -> list[dict[str, Value]]:
        """Text, label, score (0 to 1) and place in characters of each token.  Raises ModelFailed."""
        return [
            self._named(tokens, _softmax(rows[: len(tokens)].astype(np.float64)))
            for tokens, rows in zip(inputs, self._logits(inputs, stop), strict=True)
        ]

    def tokens(self, input: Tokens) -> int:
        """Tokens read, the special ones around the text included."""
        return len(input)

    def batches(self) -> bool:
        """See `TextReader.rows_are_apart`; judged by the first token."""
        return self._reader.rows_are_apart(
            self._graph.outputs, lambda texts, stop: self._logits(texts, stop)[:, 0]
        )

    def _logits(self, inputs: Sequence[Tokens], stop: Stop) -> Array:
        feeds = self._reader.feeds(inputs)
        logits: Array = self._graph.run(feeds, stop)[_LOGITS]
        if (
            logits.shape != (*next(iter(feeds.values())).shape, len(self.labels))
            or not np.isfinite(logits).all()
        ):
            raise ModelFailed("The model gave no finite score for each token and label.")
        return logits

    def _named(self, tokens: Tokens, scores: Array) -> dict[str, Value]:
        best = scores.argmax(axis=1)
        special = tokens.encoding.special_tokens_mask
        return {
            "tokens": [
                {
                    "text": tokens.text[start:end],
                    "label": self.labels[int(best[place])],
                    "score": float(scores[place, best[place]]),
                    "start": start,
                    "end": end,
                }
                for place, (start, end) in enumerate(tokens.encoding.offsets)
                if not special[place]
            ]
        }


def _check_labels(graph: Graph, labels: Sequence[str]) -> None:
    last = next((spec.shape[-1] for spec in graph.outputs if spec.name == _LOGITS), None)
    if last is None:
        raise ValidationFailed("The graph has no output named logits, which a classifier must have.")
    if isinstance(last, int) and last != len(labels):
        raise ValidationFailed(f"config.json names {len(labels)} labels; the graph scores {last}.")


def _softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return scores


def _sigmoid(logits: Array) -> Array:
    scores: Array = 0.5 * (1 + np.tanh(logits / 2))  # exp would overflow
    return scores
