"""Text classification, on the worker's side: a Hugging Face folder's tokenizer, graph and labels.

Text in, label and scores out.  A text that is longer than the model's context is refused, never cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from llmesh.core.encoding import Json, Value
from llmesh.core.model import TEXT_CLASSIFICATION, TensorSpec
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.graph import Array, Graph, Stop

__all__ = ["TextClassifier", "context_of", "labels_of", "open_tokenizer"]

_GIVEN = ("input_ids", "attention_mask", "token_type_ids")
_NO_LIMIT = 1 << 20  # transformers writes 1e30 for "unknown"
# A longer text cannot fit the context; tokenising it to find out would hold up the others.
_CHARACTERS_PER_TOKEN = 32
_MAX_CHARACTERS = 1 << 17


@dataclass(frozen=True, slots=True)
class Context:
    """How many tokens a model takes, None where it does not say, and what pads a shorter text."""

    tokens: int | None
    padding: int


def context_of(config: Mapping[str, Json], tokenizer_config: Mapping[str, Json]) -> Context:
    """The smaller of the tokenizer's and the model's own limit."""
    said = (tokenizer_config.get("model_max_length"), config.get("max_position_embeddings"))
    limits = [int(n) for n in said if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    padding = config.get("pad_token_id")
    return Context(min(limits, default=None), padding if isinstance(padding, int) and padding >= 0 else 0)


def labels_of(config: Mapping[str, Json]) -> tuple[str, ...]:
    """The words of `id2label`, in order.  Raises ValidationFailed for holes and doubles."""
    words = config.get("id2label")
    if not isinstance(words, dict) or not words:
        raise ValidationFailed("config.json: id2label must map each number to a label.")
    labels = [words.get(str(n)) for n in range(len(words))]
    if not all(isinstance(label, str) for label in labels) or len(set(map(str, labels))) < len(labels):
        raise ValidationFailed("config.json: id2label must give a label of its own to 0, 1, 2 and so on.")
    return tuple(map(str, labels))


def open_tokenizer(data: bytes) -> Tokenizer:
    """Raises ValidationFailed for what is no tokenizer."""
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more precise
        raise ValidationFailed(f"tokenizer.json is not a tokenizer: {str(error)[:200]}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # "[SEP]" typed by a user is four letters, not the end of the text.
    tokenizer.encode_special_tokens = True
    return tokenizer


class TextClassifier:
    """Softmax over the labels, or a sigmoid each where the model says that several may apply."""

    task = TEXT_CLASSIFICATION
    inputs: tuple[TensorSpec, ...] = (TensorSpec("text", "string", ()),)

    def __init__(
        self, graph: Graph, tokenizer: Tokenizer, context: Context, config: Mapping[str, Json]
    ) -> None:
        """Raises ValidationFailed where graph, labels and tokenizer do not belong together."""
        self.labels = labels_of(config)
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("label", "string", ()),
            TensorSpec("score", "float32", ()),
            TensorSpec("scores", "float32", (len(self.labels),)),
        )
        self._graph = graph
        self._tokenizer = tokenizer
        self._context = context
        several = config.get("problem_type") == "multi_label_classification"
        self._scores = _sigmoid if several or len(self.labels) == 1 else _softmax
        self._check_graph()

    def check(self, values: Mapping[str, Value]) -> dict[str, Array]:
        """The graph's inputs.  Raises ValidationFailed for what is no text or too long a one."""
        text = values.get("text")
        if not isinstance(text, str) or len(values) != 1:
            names = ", ".join(sorted(repr(name[:80]) for name in values)[:20]) or "nothing"
            raise ValidationFailed(f'The model takes {{"text": a string}}; it got {names}.')
        return self._feeds(self._token_ids(text))

    def answer(self, feeds: Mapping[str, Array], stop: Stop) -> dict[str, Value]:
        """Label, its score and the scores of all, from 0 to 1.  Raises ModelFailed."""
        logits = self._graph.run(feeds, stop)["logits"]
        if logits.shape != (1, len(self.labels)) or not np.isfinite(logits).all():
            raise ModelFailed("The model gave no finite score for each of its labels.")
        scores = [float(score) for score in self._scores(logits[0].astype(np.float64))]
        best = int(np.argmax(scores))
        return {
            "label": self.labels[best],
            "score": scores[best],
            "scores": dict(zip(self.labels, scores, strict=True)),
        }

    def input_tokens(self, feeds: Mapping[str, Array]) -> int:
        """Tokens read, the special ones around the text included."""
        mask = feeds.get("attention_mask", feeds["input_ids"])
        return int(np.count_nonzero(mask)) if "attention_mask" in feeds else int(mask.size)

    def _check_graph(self) -> None:
        """Each refusal says what in the bundle does not fit."""
        for spec in self._graph.inputs:
            batched = len(spec.shape) == 2 and spec.shape[0] in (
                1,
                *(n for n in spec.shape if isinstance(n, str)),
            )
            if spec.name not in _GIVEN or spec.dtype not in ("int64", "int32") or not batched:
                raise ValidationFailed(f"The graph asks for {spec}, which a text classifier cannot give.")
        last = next(spec for spec in self._graph.outputs if spec.name == "logits").shape[-1]
        if isinstance(last, int) and last != len(self.labels):
            raise ValidationFailed(f"config.json names {len(self.labels)} labels; the graph scores {last}.")

    def _token_ids(self, text: str) -> list[int]:
        if not text.strip():
            raise ValidationFailed("The text is empty.")
        limit = self._context.tokens
        most = min(_MAX_CHARACTERS, _CHARACTERS_PER_TOKEN * limit) if limit else _MAX_CHARACTERS
        if len(text) > most:
            takes = f"{limit} tokens, at most {most:,} characters" if limit else f"{most:,} characters"
            raise ValidationFailed(f"The text has {len(text):,} characters; the model takes {takes}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationFailed("The text holds half of a surrogate pair.") from None
        ids = self._tokenizer.encode_batch([text])[0].ids  # unlike `encode`, it lets other threads run
        if limit and len(ids) > limit:
            raise ValidationFailed(f"The text has {len(ids)} tokens; the model takes {limit}.")
        return ids

    def _feeds(self, ids: list[int]) -> dict[str, Array]:
        return {spec.name: self._feed(spec, ids) for spec in self._graph.inputs}

    def _feed(self, spec: TensorSpec, ids: list[int]) -> Array:
        """One row; a graph of fixed length gets padding, which its mask hides."""
        length = spec.shape[1] if isinstance(spec.shape[1], int) else len(ids)
        if len(ids) > length:
            raise ValidationFailed(f"The text has {len(ids)} tokens; the model takes {length}.")
        rest = length - len(ids)
        row = {
            "input_ids": [*ids, *[self._context.padding] * rest],
            "attention_mask": [1] * len(ids) + [0] * rest,
            "token_type_ids": [0] * length,
        }[spec.name]
        return np.array([row], dtype=spec.dtype)


def _softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max())
    scores: Array = exponents / exponents.sum()
    return scores


def _sigmoid(logits: Array) -> Array:
    scores: Array = 0.5 * (1 + np.tanh(logits / 2))  # exp would overflow
    return scores
