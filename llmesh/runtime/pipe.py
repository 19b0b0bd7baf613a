"""What a node and its worker say to each other over two pipes: orders down, events up.

A frame's body is a 4-byte header length, the header as JSON, then the bytes of the tensors that
the header names, in its order.  Never pickle.  The node takes a worker for hostile: what it sends
is checked part by part here, and anything amiss is Garbage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

from llmesh.core.encoding import DTYPES, Json, Tensor, Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import HEADER, with_length
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import EXECUTIONS, TASKS, ModelInfo, TensorSpec
from llmesh.errors import (
    MeshError,
    ModelFailed,
    NodeBusy,
    TooLarge,
    ValidationFailed,
    error_from_code,
)
from llmesh.runtime.orders import (
    Abilities,
    Alone,
    Event,
    GraphFacts,
    Infer,
    Load,
    Loaded,
    Order,
    Probe,
    Scan,
    Whole,
)  # fmt: skip
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import PROVIDERS, WorkerSettings

__all__ = [
    "MAX_BODY",
    "Garbage",
    "decode_event",
    "decode_order",
    "encode_event",
    "encode_order",
]

MAX_BODY = 64 << 20
"""The longest body either side takes; a longer one is refused when its length is seen."""

MAX_EVENT_HEADER = 4 << 20
"""The longest header of an event: to read a longer one would hold up the node's other work."""

# Made once: `json.dumps` with separators and `json.loads` of bytes cost half as much again.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode

_MAY_SAY = (ValidationFailed.code, ModelFailed.code, TooLarge.code, NodeBusy.code)
_MAX_SPECS = 4_096
_MAX_NAME = 512
_MAX_RANK = 16
_MAX_MESSAGE = 2_000
_MAX_COUNT = 1 << 31
_MAX_BYTES = 1 << 50
_MAX_FILES = 1_000


class Garbage(Exception):
    """What came is not of this protocol."""


def encode_order(call: int, order: Order) -> bytes:
    """The whole frame.  Raises TooLarge, and ValidationFailed for values that JSON cannot hold."""
    if isinstance(order, Infer):
        values, blobs = _pack(order.values)
        return _frame([call, "infer", values], blobs)
    return _frame([call, type(order).__name__.lower(), list(astuple(order))])


def decode_order(body: bytes) -> tuple[int, Order]:
    """For the worker, which trusts its node."""
    (call, kind, content), blobs = _split(body)
    if kind == "infer":
        return call, Infer(_unpack(content, blobs))
    return call, _ORDERS[kind](*content)


def _load(folder: str, files: list[str], graph: str, memory: int, settings: list[Any]) -> Load:
    own = WorkerSettings(*settings)
    return Load(folder, tuple(files), graph, memory, replace(own, require=SandboxLevel(own.require)))


_ORDERS: dict[str, Callable[..., Order]] = {
    "load": _load,
    "alone": Alone,
    "cancel": Cancel,
    "scan": lambda folder, graph, memory, require: Scan(folder, graph, memory, SandboxLevel(require)),
    "probe": Probe,
}


def encode_event(call: int, event: Event) -> bytes:
    """The whole frame.  Raises TooLarge."""
    if isinstance(event, Chunk):
        values, blobs = _pack(event.values)
        content: list[Json] = [event.index, event.text, list(event.token_ids), values]
        return _frame([call, "chunk", content], blobs, MAX_EVENT_HEADER)
    if isinstance(event, Whole):
        values, blobs = _pack(event.values)
        return _frame([call, "whole", [values, _of_usage(event.usage)]], blobs, MAX_EVENT_HEADER)
    return _frame([call, *_plain(event)])


def _plain(
    event: Loaded | GraphFacts | Abilities | Accepted | Usage | MeshError | Cancel,
) -> tuple[str, Json]:
    """Kind and content of an event that has no tensors."""
    match event:
        case Loaded(info, level, provider, batch, resident):
            return "loaded", [_of_info(info), int(level), provider, batch, resident]
        case GraphFacts(external, execution):
            return "facts", [list(external), execution]
        case Abilities(level, providers):
            return "abilities", [int(level), list(providers)]
        case Usage():
            return "usage", _of_usage(event)
        case MeshError():
            return "error", [event.code, event.message[:_MAX_MESSAGE]]
    return ("accepted" if isinstance(event, Accepted) else "cancelled"), None


def _of_usage(usage: Usage) -> Json:
    return [usage.input_tokens, usage.output_tokens, usage.compute_ms, usage.shared]


def _of_info(info: ModelInfo) -> Json:
    return [
        info.task,
        [[spec.name, spec.dtype, list(spec.shape)] for spec in info.inputs],
        [[spec.name, spec.dtype, list(spec.shape)] for spec in info.outputs],
        list(info.labels),
    ]


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
        text = _to_json(header).encode()
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
    return _from_json(str(body[HEADER:end], "utf-8")), memoryview(body)[end:]


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


def _loaded(content: Any, _: memoryview) -> Loaded:
    info, level, provider, batch, resident = _list(content, 5)
    if provider not in PROVIDERS or _count(batch) < 1 or not 0 <= _integer(resident) < _MAX_BYTES:
        raise ValueError("no state of a worker")
    return Loaded(_info(info), SandboxLevel(_count(level)), provider, batch, resident)


def _info(content: Any) -> ModelInfo:
    task, inputs, outputs, labels = _list(content, 4)
    if task not in TASKS:
        raise ValueError("an unknown task")
    names = tuple(_text(label, _MAX_NAME) for label in _list(labels))
    return ModelInfo(ModelId(""), task, _specs(inputs), _specs(outputs), names)


def _facts(content: Any, _: memoryview) -> GraphFacts:
    external, execution = _list(content, 2)
    if execution not in EXECUTIONS or len(_list(external)) > _MAX_FILES:
        raise ValueError("no facts of a graph")
    return GraphFacts(tuple(_text(name, _MAX_MESSAGE) for name in external), execution)


def _abilities(content: Any, _: memoryview) -> Abilities:
    level, providers = _list(content, 2)
    known = tuple(name for name in PROVIDERS if name in _list(providers))
    return Abilities(SandboxLevel(_count(level)), known)


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
    return Chunk(_count(index), _text(text), tokens, _values(values, blobs))


def _whole(content: Any, blobs: memoryview) -> Whole:
    values, usage = _list(content, 2)
    return Whole(_values(values, blobs), _usage(usage, blobs))


def _values(packed: Any, blobs: memoryview) -> dict[str, Value]:
    unpacked = _unpack(packed, blobs)
    for name, value in unpacked.items():
        _text(name)
        if not isinstance(value, Tensor):
            _check_json(value)
    return unpacked


def _usage(content: Any, _: memoryview) -> Usage:
    tokens_in, tokens_out, milliseconds, shared = _list(content, 4)
    if not isinstance(milliseconds, float) or not 0 <= milliseconds < _MAX_COUNT:
        raise ValueError("a duration out of range")
    return Usage(_count(tokens_in), _count(tokens_out), milliseconds, _count(shared))


def _error(content: Any, _: memoryview) -> MeshError:
    code, message = _list(content, 2)
    if code not in _MAY_SAY:
        raise ValueError("a code that is not a worker's to say")
    return error_from_code(code, _text(message, _MAX_MESSAGE), remote=False)


_DECODERS: dict[str, Callable[[Any, memoryview], Event]] = {
    "loaded": _loaded,
    "facts": _facts,
    "abilities": _abilities,
    "accepted": lambda _content, _blobs: Accepted(),
    "chunk": _chunk,
    "usage": _usage,
    "whole": _whole,
    "error": _error,
    "cancelled": lambda _content, _blobs: Cancel(),
}


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError("no list of the right length")
    return value


def _count(value: Any) -> int:
    if not 0 <= _integer(value) < _MAX_COUNT:
        raise ValueError("no count")
    return int(value)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("no whole number")
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
