"""Bundle: a model's files in a folder, with the ModelId that they have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmesh.core.ids import ModelId
from llmesh.core.model import BundleFile

__all__ = ["Bundle"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose listed files make up one model; `graph` is the ONNX file to run, relative."""

    folder: Path
    files: tuple[BundleFile, ...]
    id: ModelId
    graph: str
