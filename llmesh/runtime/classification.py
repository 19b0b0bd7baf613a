"""Labels for a text, or for each of its tokens, on the worker's side."""

from __future__ import annotations

import math
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
        self._several = config.get("problem_type") == "multi_label_classification" or len(self.labels) == 1
        _check_labels(graph, self.labels)

    def check(self, values: Mapping[str, Value]) -> Tokens:
        """Raises ValidationFailed for what is no text or too long a one."""
        return self._reader.read(values)

    def answer(self, inputs: Sequence[Tokens], stop: Stop) -> list[dict[str, Value]]:
        """Label, its score and the scores of all, from 0 to 1.  Raises ModelFailed."""
        return [self._named(row) for row in self._logits(inputs, stop).tolist()]

    def batches(self) -> bool:
        """See `TextReader.rows_are_apart`."""
        return self._reader.rows_are_apart(self._graph.outputs, self._logits)

    def _logits(self, inputs: Sequence[Tokens], stop: Stop) -> Array:
        logits: Array = self._graph.run(self._reader.feeds(inputs), stop)[_LOGITS]
        if logits.shape != (len(inputs), len(self.labels)) or not np.isfinite(logits).all():
            raise ModelFailed("The model gave no finite score for each of its labels.")
        return logits

    def _named(self, logits: list[float]) -> dict[str, Value]:
        scores = [_sigmoid(logit) for logit in logits] if self._several else _softmax(logits)
        best = max(range(len(scores)), key=scores.__getitem__)
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
            self._named(tokens, rows[: len(tokens)])
            for tokens, rows in zip(inputs, self._logits(inputs, stop).tolist(), strict=True)
        ]

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

    def _named(self, tokens: Tokens, rows: list[list[float]]) -> dict[str, Value]:
        encoding = tokens.encoding
        places = zip(rows, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return {
            "tokens": [
                {"text": tokens.text[start:end], **self._best(row), "start": start, "end": end}
                for row, (start, end), special in places
                if not special
            ]
        }

    def _best(self, logits: list[float]) -> dict[str, Json]:
        scores = _softmax(logits)
        best = max(range(len(scores)), key=scores.__getitem__)
        return {"label": self.labels[best], "score": scores[best]}


def _check_labels(graph: Graph, labels: Sequence[str]) -> None:
    last = next((spec.shape[-1] for spec in graph.outputs if spec.name == _LOGITS), None)
    if last is None:
        raise ValidationFailed("The graph has no output named logits, which a classifier must have.")
    if isinstance(last, int) and last != len(labels):
        raise ValidationFailed(f"config.json names {len(labels)} labels; the graph scores {last}.")


def _softmax(logits: list[float]) -> list[float]:
    """In plain floats: for few labels a fifth of what the steps of numpy take."""
    highest = max(logits)
    exponents = [math.exp(logit - highest) for logit in logits]
    total = sum(exponents)
    return [exponent / total for exponent in exponents]


def _sigmoid(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))  # exp would overflow
