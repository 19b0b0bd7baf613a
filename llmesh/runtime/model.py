"""Open a bundle in the worker: which task it is for is told by its graph and its config files.

In this order: `llmesh.json` (a hint that must fit), a decoder by its config, labels and `logits`,
states of tokens; whatever else is raw tensors by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmesh.core.encoding import Json
from llmesh.core.model import (
    EMBEDDINGS,
    RAW_TENSORS,
    TASKS,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
)  # fmt: skip
from llmesh.errors import ValidationFailed
from llmesh.runtime.batches import BatchedModel, Task
from llmesh.runtime.classification import TextClassifier, TokenClassifier
from llmesh.runtime.embedding import SENTENCE_OUTPUT, TOKEN_OUTPUTS, Embedder, pooling_of
from llmesh.runtime.generation.model import TextGenerator
from llmesh.runtime.graph import Graph
from llmesh.runtime.job import Model
from llmesh.runtime.orders import Load
from llmesh.runtime.tensors import RawTensors
from llmesh.runtime.text import GIVEN, TextReader, context_of, open_tokenizer

__all__ = ["open_model"]

_MAX_CONFIG = 4 << 20
_MAX_TOKENIZER = 64 << 20


def open_model(order: Load) -> Model[Any]:
    """Raises ValidationFailed, naming the file at fault."""
    files = _Files(order)
    if _generates(files):
        return TextGenerator(order)
    graph = Graph(
        Path(order.folder) / order.graph, order.graph, order.settings.threads, order.settings.provider
    )
    task = files.hint("task") or _detect(graph, files)
    if not isinstance(task, str) or task not in _OPENERS:
        raise ValidationFailed(f"llmesh.json: task {str(task)[:80]!r} is none of {', '.join(TASKS)}.")
    return BatchedModel(_OPENERS[task](graph, files), order.settings)


class _Files:
    """The small files of the bundle."""

    def __init__(self, order: Load) -> None:
        self._order = order
        self.config = self.object("config.json")

    def __contains__(self, name: str) -> bool:
        return name in self._order.files

    def hint(self, name: str) -> Json:
        """A field of the optional llmesh.json."""
        return self.object("llmesh.json").get(name)

    def object(self, name: str) -> dict[str, Json]:
        """A JSON object of the bundle; empty where the bundle has no such file."""
        content = self.json(name)
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ValidationFailed(f"{name} is not a JSON object.")
        return content

    def json(self, name: str) -> Json:
        """The content of a JSON file; None where the bundle has no such file."""
        if name not in self:
            return None
        try:
            content: Json = json.loads(self.read(name, _MAX_CONFIG))
        except (ValueError, RecursionError):
            raise ValidationFailed(f"{name} is not JSON.") from None
        return content

    def read(self, name: str, limit: int) -> bytes:
        """Raises ValidationFailed over the limit, in bytes."""
        try:
            with (Path(self._order.folder) / name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise ValidationFailed(f"{name} cannot be read: {error.strerror}.") from None
        if len(data) > limit:
            raise ValidationFailed(f"{name} is over {limit >> 20} MiB.")
        return data


def _detect(graph: Graph, files: _Files) -> str:
    given = {spec.name for spec in graph.inputs}
    ranks = {spec.name: len(spec.shape) for spec in graph.outputs}
    if "input_ids" not in given or not files.config:
        return RAW_TENSORS
    if "id2label" in files.config and files.config.get("problem_type") != "regression":
        if ranks.get("logits") == 2:
            return TEXT_CLASSIFICATION
        if ranks.get("logits") == 3 and _is_built(files.config, "ForTokenClassification"):
            return TOKEN_CLASSIFICATION
    states = any(name in ranks for name in (SENTENCE_OUTPUT, *TOKEN_OUTPUTS))
    return EMBEDDINGS if states and given <= set(GIVEN) else RAW_TENSORS


def _generates(files: _Files) -> bool:
    """By the files alone, so that a large graph is not loaded to find out."""
    if files.hint("task") is not None:
        return files.hint("task") == TEXT_GENERATION
    decoder = _is_built(files.config, "ForCausalLM") or _is_built(files.config, "LMHeadModel")
    return decoder or ("genai_config.json" in files and "architectures" not in files.config)


def _is_built(config: dict[str, Json], ending: str) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(ending) for name in names)


def _reader(graph: Graph, files: _Files) -> TextReader:
    if "tokenizer.json" not in files:
        raise ValidationFailed(
            "The graph takes tokens of a text, and the bundle has no tokenizer.json to make them;"
            ' add it, or say {"task": "raw-tensors"} in llmesh.json.'
        )
    tokenizer = open_tokenizer(files.read("tokenizer.json", _MAX_TOKENIZER))
    limits = files.hint("limits")
    context = context_of(
        files.config,
        files.object("tokenizer_config.json").get("model_max_length"),
        files.object("sentence_bert_config.json").get("max_seq_length"),
        limits.get("max_tokens") if isinstance(limits, dict) else None,
    )
    return TextReader(tokenizer, context, graph.inputs)


def _open_embedder(graph: Graph, files: _Files) -> Embedder:
    pooling = pooling_of(files.object("1_Pooling/config.json"), files.json("modules.json"))
    return Embedder(graph, _reader(graph, files), pooling)


_OPENERS: dict[str, Callable[[Graph, _Files], Task[Any]]] = {
    RAW_TENSORS: lambda graph, _files: RawTensors(graph),
    TEXT_CLASSIFICATION: lambda graph, files: TextClassifier(graph, _reader(graph, files), files.config),
    TOKEN_CLASSIFICATION: lambda graph, files: TokenClassifier(graph, _reader(graph, files), files.config),
    EMBEDDINGS: _open_embedder,
}
