"""A model as the worker runs it: which task a bundle is for is told by its graph and config files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from llmesh.core.encoding import Json, Value
from llmesh.core.model import TensorSpec
from llmesh.errors import ValidationFailed
from llmesh.runtime.graph import Array, Graph, Stop
from llmesh.runtime.pipe import Load
from llmesh.runtime.tensors import RawTensors
from llmesh.runtime.text import TextClassifier, context_of, open_tokenizer

__all__ = ["Model", "open_model"]

_MAX_CONFIG = 4 << 20
_MAX_TOKENIZER = 64 << 20


class Model(Protocol):
    """What a task adds to a graph: from named values to tensors and back."""

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]

    def check(self, values: Mapping[str, Value]) -> dict[str, Array]:
        """The graph's inputs.  Raises ValidationFailed."""

    def answer(self, feeds: Mapping[str, Array], stop: Stop) -> dict[str, Value]:
        """The named outputs.  Raises ModelFailed."""

    def input_tokens(self, feeds: Mapping[str, Array]) -> int:
        """Text tokens read."""


def open_model(order: Load) -> Model:
    """Raises ValidationFailed, naming the file at fault."""
    folder = Path(order.folder)
    graph = Graph(folder / order.graph, order.graph, order.threads)
    config = _read_json(order, "config.json")
    if not _classifies_text(graph, config):
        return RawTensors(graph)
    if "tokenizer.json" not in order.files:
        raise ValidationFailed("The bundle names labels for a text but has no tokenizer.json.")
    tokenizer = open_tokenizer(_read(folder / "tokenizer.json", _MAX_TOKENIZER))
    return TextClassifier(
        graph, tokenizer, context_of(config, _read_json(order, "tokenizer_config.json")), config
    )


def _classifies_text(graph: Graph, config: Mapping[str, Json]) -> bool:
    """Labels, tokens in, one score a label out; a regression has a number, not labels."""
    logits = [spec for spec in graph.outputs if spec.name == "logits" and len(spec.shape) == 2]
    tokens = any(spec.name == "input_ids" for spec in graph.inputs)
    return bool(logits) and tokens and "id2label" in config and config.get("problem_type") != "regression"


def _read_json(order: Load, name: str) -> dict[str, Json]:
    """A JSON object of the bundle; empty where the bundle has no such file."""
    if name not in order.files:
        return {}
    try:
        content = json.loads(_read(Path(order.folder) / name, _MAX_CONFIG))
    except (ValueError, RecursionError):
        raise ValidationFailed(f"{name} is not JSON.") from None
    if not isinstance(content, dict):
        raise ValidationFailed(f"{name} is not a JSON object.")
    return content


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ValidationFailed(f"{path.name} cannot be read: {error.strerror}.") from None
    if len(data) > limit:
        raise ValidationFailed(f"{path.name} is over {limit >> 20} MiB.")
    return data
