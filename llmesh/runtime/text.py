"""From a text to a graph's tokens, on the worker's side: a Hugging Face folder's tokenizer.

A text that is longer than the model's context is refused; it is cut only where the caller says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tokenizers import Encoding, Tokenizer

from llmesh.core.encoding import Json, Value
from llmesh.core.model import TensorSpec
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.graph import Array, Stop, warm_up

__all__ = ["GIVEN", "Context", "TextReader", "Tokens", "context_of", "labels_of", "open_tokenizer"]

GIVEN = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs of a graph that a text can fill."""

_NO_LIMIT = 1 << 20  # transformers writes 1e30 for "unknown"
# A longer text cannot fit the context; tokenising it to find out would hold up the others.
_CHARACTERS_PER_TOKEN = 32
_MAX_CHARACTERS = 1 << 17
_SAMPLES = ("a", "One, two, three, four: 五六七八九十。")
_MOST_APART = 0.1


@dataclass(frozen=True, slots=True)
class Context:
    """How many tokens a model takes, None where it does not say, and what pads a shorter text."""

    tokens: int | None
    padding: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text and what the tokenizer made of it, the special tokens around it included."""

    text: str
    encoding: Encoding
    group: Hashable = ()

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self)

    def __len__(self) -> int:
        return len(self.encoding)


Run: TypeAlias = Callable[[Sequence[Tokens], Stop], Array]
"""A run of the graph; one row a text."""


def context_of(config: Mapping[str, Json], *others: Json) -> Context:
    """The smallest of the model's own limit and what else names one."""
    limits = [int(n) for n in (config.get("max_position_embeddings"), *others) if _is_limit(n)]  # type: ignore[arg-type]
    padding = config.get("pad_token_id")
    return Context(min(limits, default=None), padding if isinstance(padding, int) and padding >= 0 else 0)


def _is_limit(value: Json) -> bool:
    return isinstance(value, int | float) and 0 < value < _NO_LIMIT


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


class TextReader:
    """The way into one graph: from {"text": ...} to its tensors.  `read` is for one thread."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec("text", "string", ()),)

    def __init__(self, tokenizer: Tokenizer, context: Context, specs: Sequence[TensorSpec]) -> None:
        """Raises ValidationFailed where the graph asks for what no text gives."""
        for spec in specs:
            batched = len(spec.shape) == 2 and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)
            if spec.name not in GIVEN or spec.dtype not in ("int64", "int32") or not batched:
                raise ValidationFailed(f"The graph asks for {spec}, which a text cannot give.")
        self._tokenizer = tokenizer
        self._padding = context.padding
        self._specs = tuple(specs)
        fixed = [spec.shape[1] for spec in specs if isinstance(spec.shape[1], int)]
        self._fixed = min(fixed, default=None)
        self._limit = min((n for n in (context.tokens, self._fixed) if n is not None), default=None)

    def read(self, values: Mapping[str, Value]) -> Tokens:
        """Raises ValidationFailed for what is no text or too long a one."""
        text, truncate = values.get("text"), values.get("truncate", False)
        if "text" not in values or not values.keys() <= {"text", "truncate"}:
            names = ", ".join(sorted(repr(name[:80]) for name in values)[:20]) or "nothing"
            raise ValidationFailed(
                f'The model takes {{"text": a string}}, and "truncate": true; it got {names}.'
            )
        if not isinstance(text, str):
            raise ValidationFailed(f"text must be a string, not {type(text).__name__}.")
        if not isinstance(truncate, bool):
            raise ValidationFailed(f"truncate must be true or false, not {type(truncate).__name__}.")
        if not text.strip():
            raise ValidationFailed("The text is empty.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationFailed("The text holds half of a surrogate pair.") from None
        return self._cut(text) if truncate else self._whole(text)

    def feeds(self, texts: Sequence[Tokens]) -> dict[str, Array]:
        """One row a text; what is shorter than the longest, or than the graph wants, gets padding."""
        length = self._fixed or max(map(len, texts))
        if length == len(texts[0]) and len(texts) == 1:
            return self._whole_row(texts[0])
        filled = {"input_ids": self._padding, "attention_mask": 0, "token_type_ids": 0}
        feeds = {s.name: np.full((len(texts), length), filled[s.name], dtype=s.dtype) for s in self._specs}
        for row, tokens in enumerate(texts):
            if "input_ids" in feeds:
                feeds["input_ids"][row, : len(tokens)] = tokens.encoding.ids
            if "attention_mask" in feeds:
                feeds["attention_mask"][row, : len(tokens)] = 1
        return feeds

    def _whole_row(self, tokens: Tokens) -> dict[str, Array]:
        encoding = tokens.encoding
        rows = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        return {spec.name: np.array([rows[spec.name]], dtype=spec.dtype) for spec in self._specs}

    def rows_are_apart(self, outputs: Sequence[TensorSpec], run: Run) -> bool:
        """Whether texts may share a run: the graph takes several, and tried, each gets its own answer."""
        free = all(spec.shape and isinstance(spec.shape[0], str) for spec in (*self._specs, *outputs))
        if not free or not any(spec.name == "attention_mask" for spec in self._specs):
            return False
        texts = [self._cut(text) for text in _SAMPLES]
        try:
            with warm_up() as stop:
                alone = [run([text], stop)[0] for text in texts]
                together = run(texts, stop)
        except ModelFailed:
            return False
        least = 1 + max(float(np.abs(row).max(initial=0)) for row in alone)
        return all(
            float(np.abs(one - other).max(initial=0)) <= _MOST_APART * least
            for one, other in zip(alone, together, strict=True)
        )

    def _whole(self, text: str) -> Tokens:
        limit = self._limit
        most = _most_characters(limit)
        if len(text) > most:
            takes = f"{limit} tokens, at most {most:,} characters" if limit else f"{most:,} characters"
            raise ValidationFailed(f"The text has {len(text):,} characters; the model takes {takes}.")
        tokens = self._encode(text)
        if limit and len(tokens) > limit:
            raise ValidationFailed(
                f'The text has {len(tokens)} tokens; the model takes {limit} ("truncate": true cuts it).'
            )
        return tokens

    def _cut(self, text: str) -> Tokens:
        if self._limit:
            self._tokenizer.enable_truncation(self._limit)
        try:
            return self._encode(text[: _most_characters(self._limit)])
        finally:
            self._tokenizer.no_truncation()

    def _encode(self, text: str) -> Tokens:
        (encoding,) = self._tokenizer.encode_batch([text])  # unlike `encode`, it lets other threads run
        if not len(encoding):
            raise ValidationFailed("The text has no tokens.")
        return Tokens(text, encoding)


def _most_characters(tokens: int | None) -> int:
    return min(_MAX_CHARACTERS, _CHARACTERS_PER_TOKEN * tokens) if tokens else _MAX_CHARACTERS
