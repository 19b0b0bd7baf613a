"""What a node and its worker say to each other over two pipes: orders down, events up.

A frame's body is a 4-byte header length, the header as JSON, then the bytes of the tensors that
the header names, in its order.  Never pickle.  The node takes a worker for hostile: what it sends
is checked part by part here, and anything amiss is Garbage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmesh.core.encoding import DTYPES, Json, Tensor, Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import HEADER, with_length
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import RAW_TENSORS, TEXT_CLASSIFICATION, ModelInfo, TensorSpec
from llmesh.errors import (
    MeshError,
    ModelFailed,
    TooLarge,
    ValidationFailed,
    error_from_code,
)

__all__ = [
    "LOAD",
    "MAX_BODY",
    "Event",
    "Garbage",
    "Infer",
    "Load",
    "Order",
    "decode_event",
    "decode_order",
    "encode_event",
    "encode_order",
]

MAX_BODY = 64 << 20
"""The longest body either side takes; a longer one is refused when its length is seen."""

MAX_EVENT_HEADER = 4 << 20
"""The longest header of an event: to read a longer one would hold up the node's other work."""

LOAD = 0
"""The call number of the load; inferences count from 1."""

_TASKS = (RAW_TENSORS, TEXT_CLASSIFICATION)
_MAY_SAY = (ValidationFailed.code, ModelFailed.code, TooLarge.code)
_MAX_SPECS = 4_096
_MAX_NAME = 512
_MAX_RANK = 16
_MAX_MESSAGE = 2_000
_MAX_COUNT = 1 << 31


@dataclass(frozen=True, slots=True)
class Load:
    """The first order: open this graph of this bundle, to run on so many threads."""

    folder: str
    files: tuple[str, ...]
    graph: str
    threads: int


@dataclass(frozen=True, slots=True)
class Infer:
    """Check these values, say Accepted, and run when all accepted before are done."""

    values: Mapping[str, Value]


Order: TypeAlias = Load | Infer | Cancel

Event: TypeAlias = ModelInfo | Accepted | Chunk | Usage | MeshError | Cancel
"""ModelInfo answers a load; Accepted, Chunk*, Usage an inference; Cancel says that it was stopped."""


class Garbage(Exception):
    """What came is not of this protocol."""


def encode_order(call: int, order: Order) -> bytes:
    """The whole frame.  Raises TooLarge, and ValidationFailed for values that JSON cannot hold."""
    if isinstance(order, Load):
        return _frame([call, "load", [order.folder, list(order.files), order.graph, order.threads]])
    if isinstance(order, Infer):
        values, blobs = _pack(order.values)
        return _frame([call, "infer", values], blobs)
    return _frame([call, "cancel", None])


def decode_order(body: bytes) -> tuple[int, Order]:
    """For the worker, which trusts its node."""
    (call, kind, content), blobs = _split(body)
    if kind == "load":
        folder, files, graph, threads = content
        return call, Load(folder, tuple(files), graph, threads)
    return call, Infer(_unpack(content, blobs)) if kind == "infer" else Cancel()


def encode_event(call: int, event: Event) -> bytes:
    """The whole frame.  Raises TooLarge."""
    if isinstance(event, Chunk):
        values, blobs = _pack(event.values)
        content: list[Json] = [event.index, event.text, list(event.token_ids), values]
        return _frame([call, "chunk", content], blobs, MAX_EVENT_HEADER)
    return _frame([call, *_plain(event)])


def _plain(event: ModelInfo | Accepted | Usage | MeshError | Cancel) -> tuple[str, Json]:
    """Kind and content of an event that has no tensors."""
    if isinstance(event, ModelInfo):
        return "loaded", [
            event.task,
            [[spec.name, spec.dtype, list(spec.shape)] for spec in event.inputs],
            [[spec.name, spec.dtype, list(spec.shape)] for spec in event.outputs],
            list(event.labels),
        ]
    if isinstance(event, Usage):
        return "usage", [event.input_tokens, event.output_tokens, event.compute_ms]
    if isinstance(event, MeshError):
        return "error", [event.code, event.message[:_MAX_MESSAGE]]
    return ("accepted" if isinstance(event, Accepted) else "cancelled"), None


def decode_event(body: bytes) -> tuple[int, Event]:
    """For the node.  Raises Garbage for whatever a sound worker would not send."""
    try:
        if int.from_bytes(body[:HEADER], "big") > MAX_EVENT_HEADER:
            raise ValueError("a header over the limit")
        header, blobs = _split(body)
        call, kind, content = _list(header, 3)
        return _count(call), _DECODERS[_text(kind)](content, blobs)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationFailed) as error:
        raise Garbage(f"{type(error).__name__}: {error}"[:200]) from None


def _frame(header: list[Json], blobs: Sequence[bytes] = (), header_limit: int = MAX_BODY) -> bytes:
    try:
        text = json.dumps(header, separators=(",", ":")).encode()
    except (RecursionError, ValueError, TypeError):
        raise ValidationFailed("A value is nested too deeply, too long a number, or no JSON.") from None
    size = HEADER + len(text) + sum(map(len, blobs))
    if size > MAX_BODY or len(text) > header_limit:
        raise TooLarge(
            f"The values take {size:,} bytes, {len(text):,} of them JSON; a worker takes and gives"
            f" {MAX_BODY:,} at most, {header_limit:,} of them JSON."
        )
    return with_length(b"".join([len(text).to_bytes(HEADER, "big"), text, *blobs]))


def _split(body: bytes) -> tuple[Any, memoryview]:
    """The header, parsed, and the bytes of the tensors."""
    end = HEADER + int.from_bytes(body[:HEADER], "big")
    if end > len(body):
        raise ValueError("the header is longer than the frame")
    return json.loads(body[HEADER:end]), memoryview(body)[end:]


def _pack(values: Mapping[str, Value]) -> tuple[Json, list[bytes]]:
    """Named values as JSON, each `[name, [dtype, shape]]` or `[name, null, json]`, and tensors' bytes."""
    packed: list[Json] = []
    blobs = []
    for name, value in values.items():
        if isinstance(value, Tensor):
            packed.append([name, [value.dtype, list(value.shape)]])
            blobs.append(value.data)
        else:
            packed.append([name, None, value])
    return packed, blobs


def _unpack(packed: Any, blobs: memoryview) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, tensor, *plain in _list(packed):
        if tensor is None:
            (values[_text(name)],) = plain
            continue
        dtype, shape = _list(tensor, 2)
        if plain or len(_list(shape)) > _MAX_RANK:
            raise ValueError("no tensor")
        size = math.prod(map(_count, shape)) * DTYPES[_text(dtype)]
        values[_text(name)] = Tensor(dtype, tuple(shape), bytes(blobs[:size]))
        blobs = blobs[size:]
    if blobs:
        raise ValueError("bytes that no tensor claims")
    return values


def _loaded(content: Any, _: memoryview) -> ModelInfo:
    task, inputs, outputs, labels = _list(content, 4)
    if task not in _TASKS:
        raise ValueError("an unknown task")
    names = tuple(_text(label, _MAX_NAME) for label in _list(labels))
    return ModelInfo(ModelId(""), task, _specs(inputs), _specs(outputs), names)


def _specs(content: Any) -> tuple[TensorSpec, ...]:
    if len(_list(content)) > _MAX_SPECS:
        raise ValueError("too many inputs or outputs")
    return tuple(_spec(*_list(spec, 3)) for spec in content)


def _spec(name: Any, dtype: Any, shape: Any) -> TensorSpec:
    if dtype != "string" and dtype not in DTYPES:
        raise ValueError("an unknown dtype")
    lengths = tuple(_text(n, _MAX_NAME) if isinstance(n, str) else _count(n) for n in _list(shape))
    return TensorSpec(_text(name, _MAX_NAME), dtype, lengths)


def _chunk(content: Any, blobs: memoryview) -> Chunk:
    index, text, token_ids, values = _list(content, 4)
    tokens = tuple(map(_count, _list(token_ids)))
    unpacked = _unpack(values, blobs)
    for name, value in unpacked.items():
        _text(name)
        if not isinstance(value, Tensor):
            _check_json(value)
    return Chunk(_count(index), _text(text), tokens, unpacked)


def _usage(content: Any, _: memoryview) -> Usage:
    tokens_in, tokens_out, milliseconds = _list(content, 3)
    if not isinstance(milliseconds, float) or not 0 <= milliseconds < _MAX_COUNT:
        raise ValueError("a duration out of range")
    return Usage(_count(tokens_in), _count(tokens_out), milliseconds)


def _error(content: Any, _: memoryview) -> MeshError:
    code, message = _list(content, 2)
    if code not in _MAY_SAY:
        raise ValueError("a code that is not a worker's to say")
    return error_from_code(code, _text(message, _MAX_MESSAGE), remote=False)


_DECODERS: dict[str, Callable[[Any, memoryview], Event]] = {
    "loaded": _loaded,
    "accepted": lambda _content, _blobs: Accepted(),
    "chunk": _chunk,
    "usage": _usage,
    "error": _error,
    "cancelled": lambda _content, _blobs: Cancel(),
}


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError("no list of the right length")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError("no count")
    return value


def _text(value: Any, limit: int = MAX_BODY) -> str:
    """A text that UTF-8 can hold; JSON may smuggle in half of a surrogate pair."""
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError("no text of allowed length")
    value.encode()
    return value


def _check_json(value: Json) -> None:
    """Only what every reader downstream can hold: sound texts, finite floats, 64-bit numbers."""
    if isinstance(value, str):
        _text(value)
    elif isinstance(value, int | float):
        if not abs(value) < 1 << 64:
            raise ValueError("a number out of range")
    elif isinstance(value, list):
        for item in value:
            _check_json(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _text(name)
            _check_json(item)
