"""A decoder graph in onnxruntime: its signature, its cache tensors, and the reading of a prompt.

Two families are known by their inputs and operators: plain exports, whose graph appends new keys
and values to `past_key_values.*`, and graphs with GroupQueryAttention, which write them in place.
Outputs are always asked for by name: builders list them in an order of their own.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.generation.settings import ModelSettings
from llmesh.runtime.graph import Stop

__all__ = ["Array", "Floats", "Graph", "Past", "Stop", "failure", "open_session", "run_session"]

Array: TypeAlias = "npt.NDArray[Any]"
Floats: TypeAlias = "npt.NDArray[np.float32]"
Past: TypeAlias = "list[Array]"
"""Keys and values of one row, one array `[1, heads, tokens, head_size]` a cache tensor of the graph."""

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)\Z")
_PLAIN = {"input_ids", "attention_mask", "position_ids", "use_cache_branch"}
_DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INDEX = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
# A node's op_type is field 4 of its protobuf message: tag, length, name.
_GROUPED = b"\x22\x13GroupQueryAttention"
_PIECE_LOGITS = 1 << 24


class Graph:
    """One session and what is known of its inputs and outputs.

    `content` stands in for what the file holds, but not for the weights beside it.  `piece` is the
    most prompt tokens to read in one run, `token_bytes` what the cache of one token takes.  Raises
    ValidationFailed for a file that is not a decoder with a cache.
    """

    def __init__(
        self, path: Path, settings: ModelSettings, threads: int, content: bytes | None = None
    ) -> None:
        self.session = open_session(path, threads, content)
        self.context = settings.context
        inputs = {one.name: one for one in self.session.get_inputs()}
        outputs = {one.name: one for one in self.session.get_outputs()}
        self.past = _past_names(inputs)
        self.present = _present_names(self.past, outputs)
        self.grouped = _GROUPED in content if content else _mentions(path, _GROUPED)
        self.index_type = _INDEX.get(inputs["input_ids"].type, np.int64)
        self.dtype = _float_type(inputs[self.past[0]])
        self.logits_type = _float_type(outputs["logits"])
        self.heads, self.head_size = _cache_shape(inputs[self.past[0]], settings)
        self.positions = "position_ids" in inputs
        self.mask = "attention_mask" in inputs
        self.branch = "use_cache_branch" in inputs
        self.vocabulary = self._count_vocabulary()
        self.piece = min(256, max(16, _PIECE_LOGITS // self.vocabulary))
        self.token_bytes = len(self.past) * self.heads * self.head_size * np.dtype(self.dtype).itemsize

    def empty(self) -> Past:
        """The cache of a row that has read nothing."""
        return [np.zeros((1, self.heads, 0, self.head_size), self.dtype) for _ in self.past]

    def read(self, tokens: list[int], past: Past, stop: Stop | None = None) -> tuple[Floats, Past]:
        """Read `tokens` after `past`, alone: the logits `[vocabulary]` after the last, and the longer cache.

        Raises ModelFailed where onnxruntime does, and where it is stopped.
        """
        had = past[0].shape[2]
        ids = np.array([tokens], self.index_type)
        feed = self.feed(
            ids,
            np.ones((1, had + len(tokens)), self.index_type),
            np.arange(had, had + len(tokens), dtype=self.index_type)[None],
        )
        if self.branch:
            feed["use_cache_branch"] = np.array([had > 0])
        feed |= dict(zip(self.past, past, strict=True))
        logits, *present = self.run(["logits", *self.present], feed, stop)
        return np.asarray(logits[0, -1], np.float32), present

    def feed(self, ids: Array, mask: Array, positions: Array) -> dict[str, Array]:
        """The inputs besides the cache, those that this graph has."""
        feed = {"input_ids": ids}
        if self.mask:
            feed["attention_mask"] = mask
        if self.positions:
            feed["position_ids"] = positions
        if self.branch:
            feed["use_cache_branch"] = np.array([True])
        return feed

    def run(self, outputs: list[str], feed: dict[str, Array], stop: Stop | None = None) -> list[Array]:
        """See run_session."""
        return run_session(self.session, outputs, feed, stop)

    def _count_vocabulary(self) -> int:
        """Reading one token also proves that the inputs are of the right types and shapes."""
        self.vocabulary = 1
        try:
            logits, _ = self.read([0], self.empty())
        except ModelFailed as error:
            raise ValidationFailed(f"The graph does not run as a decoder. {error.message}") from None
        if logits.ndim != 1:
            raise ValidationFailed("The graph's logits must have the shape [batch, tokens, vocabulary].")
        return int(logits.shape[0])


def failure(error: Exception) -> ModelFailed:
    """What onnxruntime says, as one line of bounded length."""
    return ModelFailed(f"onnxruntime: {(str(error).splitlines() or [''])[0][:300]}.")


def open_session(path: Path, threads: int, content: bytes | None = None) -> ort.InferenceSession:
    """Load a file, or `content` with the weights beside the file.  Raises ValidationFailed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Prompts come in every length; a memory plan kept for each of them would only pile up.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return ort.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValidationFailed(f"{path.name} does not load: {failure(error).message}") from None


def run_session(
    session: ort.InferenceSession, outputs: list[str], feed: Mapping[str, Array], stop: Stop | None = None
) -> list[Array]:
    """Run once.  Raises ModelFailed with the first line of what onnxruntime says."""
    try:
        found: list[Array] = session.run(outputs, feed, stop.options if stop else None)
    except Exception as error:
        raise failure(error) from None
    return found


def _past_names(inputs: dict[str, Any]) -> list[str]:
    layers = sorted((int(m[1]), m[2], name) for name in inputs if (m := _PAST.match(name)))
    if not layers or "input_ids" not in inputs:
        raise ValidationFailed(
            "The graph is not a decoder with a cache: it takes no input_ids and past_key_values.N.key/value."
        )
    if len(layers) != 2 * len({n for n, _, _ in layers}):
        raise ValidationFailed("The graph's past_key_values do not come in pairs of key and value.")
    for name in inputs:
        if name not in _PLAIN and not _PAST.match(name):
            raise ValidationFailed(
                f"The graph also takes {name[:80]!r}, which text generation has nothing to give for."
            )
    return [name for _, _, name in layers]


def _present_names(past: list[str], outputs: dict[str, Any]) -> list[str]:
    present = [name.replace("past_key_values", "present", 1) for name in past]
    for name in ("logits", *present):
        if name not in outputs:
            raise ValidationFailed(f"The graph has no output {name!r}.")
    return present


def _float_type(value: Any) -> type[np.floating[Any]]:
    if value.type not in _DTYPES:
        raise ValidationFailed(f"{value.name} is a {value.type}; {' and '.join(_DTYPES)} can be held here.")
    return _DTYPES[value.type]


def _cache_shape(value: Any, settings: ModelSettings) -> tuple[int, int]:
    if len(value.shape) != 4:
        raise ValidationFailed(f"{value.name} must have four lengths: batch, heads, tokens, head size.")
    heads, size = value.shape[1], value.shape[3]
    heads = heads if isinstance(heads, int) else settings.heads
    size = size if isinstance(size, int) else settings.head_size
    if not heads or not size or heads * size > 1 << 16:
        raise ValidationFailed(
            "Neither the graph nor config.json says how many key/value heads of what size the cache has."
        )
    return heads, size


def _mentions(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(needle) >= 0
