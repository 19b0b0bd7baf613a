"""What is said about a model: its id from its files, its card, its signature."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from llmesh.core.ids import ModelId

__all__ = ["EXECUTIONS", "TASKS", "BundleFile", "Card", "ModelInfo", "TensorSpec", "model_id_of"]

RAW_TENSORS = "raw-tensors"
TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task, no secret
EMBEDDINGS = "embeddings"
TEXT_GENERATION = "text-generation"
TASKS = (RAW_TENSORS, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, EMBEDDINGS, TEXT_GENERATION)
"""What a runtime can do with a graph."""

EXECUTIONS = ("fp32-strict", "fp16", "int8-static", "int8-dynamic", "int4")
"""Classes of arithmetic, each with a tolerance of its own when two answers are compared.

`int8-dynamic` scales activations by their largest value, batch-mates included, which moves a score
by up to 0.02; in the others the batch changes no more than the order of additions does.
"""


@dataclass(frozen=True, order=True, slots=True)
class BundleFile:
    """One file of a bundle: POSIX path inside it, bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def model_id_of(files: Iterable[BundleFile]) -> ModelId:
    """The digest of the sorted (path, size, SHA-256): same bytes, same id, wherever deployed.

    Hashed text is one `path NUL size NUL sha256 LF` line a file, in UTF-8, sorted by path.
    """
    digest = hashlib.sha256(b"llmesh model 1\n")
    for file in sorted(files):
        digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
    return ModelId(digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Card:
    """What an offer says about a model; never part of its id."""

    name: str
    version: str = "1.0.0"
    description: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; a length that is a word is free (`batch`)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model a runtime has loaded: its task and what it takes and gives.

    `variant` is the ONNX file of the bundle that runs, `execution` one of EXECUTIONS.
    """

    id: ModelId
    task: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    labels: tuple[str, ...] = ()
    variant: str = ""
    execution: str = ""
