"""Tensors as the Open Inference Protocol (KServe V2) writes them, in JSON and in its binary extension.

In JSON the elements are a flat or nested list; in binary they are bytes in C order, little-endian, and
each element of BYTES has its length (4 bytes) before it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from llmesh.core.encoding import Json, Tensor, Value
from llmesh.errors import ValidationFailed

__all__ = ["DATATYPES", "TEXTS", "Named", "datatype_of", "named_of", "pack_texts", "texts_of", "to_tensor"]

TEXTS = "BYTES"
"""The datatype of texts."""
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "UINT16": "uint16", "INT16": "int16",
    "UINT32": "uint32", "INT32": "int32", "UINT64": "uint64", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's names of element types, and ours."""
_NAMES = {ours: theirs for theirs, ours in DATATYPES.items()}
_FORMATS = {
    "bool": "?", "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "uint64": "Q", "int64": "q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Named:
    """An output on its way: texts, or the elements of a tensor as bytes and on demand as numbers."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: tuple[str, ...] | Tensor

    @property
    def numbers(self) -> list[Json]:
        """The elements in a flat list."""
        if isinstance(self.elements, Tensor):
            flat = Tensor(self.elements.dtype, (math.prod(self.shape),), self.elements.data).tolist()
            return flat if isinstance(flat, list) else [flat]
        return list(self.elements)

    @property
    def binary(self) -> bytes:
        """The elements as the binary extension has them."""
        return self.elements.data if isinstance(self.elements, Tensor) else pack_texts(self.elements)


def datatype_of(dtype: str) -> str:
    """The protocol's name of an element type of ours; texts for any other."""
    return _NAMES.get(dtype, TEXTS)


def to_tensor(name: str, datatype: str, shape: Sequence[int], data: Json | bytes) -> Tensor:
    """A tensor from its binary form or its list.  Raises ValidationFailed that names it."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        known = ", ".join((*DATATYPES, TEXTS))
        raise ValidationFailed(f"Input {name}: {datatype[:20]!r} is not a datatype here; {known} are.")
    raw = data if isinstance(data, bytes) else _pack(name, dtype, _flat(name, data, math.prod(shape)))
    try:
        return Tensor(dtype, tuple(shape), raw)
    except ValidationFailed as error:
        raise ValidationFailed(f"Input {name}: {error.message}") from None


def texts_of(name: str, shape: Sequence[int], data: Json | bytes) -> tuple[str, ...]:
    """The elements of BYTES, which here are UTF-8 texts.  Raises ValidationFailed."""
    count = math.prod(shape)
    if isinstance(data, bytes):
        texts = tuple(_read_text(name, piece) for piece in _unpack_texts(name, data))
    else:
        texts = tuple(text for text in _flat(name, data, count) if isinstance(text, str))
    if len(texts) != count:
        raise ValidationFailed(f"Input {name}: shape {list(shape)} takes {count} texts, not {len(texts)}.")
    return texts


def pack_texts(texts: Sequence[str]) -> bytes:
    """Each with its length before it."""
    pieces = (text.encode() for text in texts)
    return b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)


def named_of(name: str, values: Sequence[Value]) -> Named:
    """One output from its value in each row: stacked where they are tensors, numbers or texts alike.

    What has no element type of the protocol (lists of words, objects) is a text of JSON.  Raises what
    `schema.tellable` is for.
    """
    first = values[0]
    rows = len(values)
    if isinstance(first, Tensor):
        alike = [
            v for v in values if isinstance(v, Tensor) and (v.dtype, v.shape) == (first.dtype, first.shape)
        ]
        if len(alike) == rows:
            whole = b"".join(value.data for value in alike)
            shape = (rows, *first.shape)
            return Named(name, datatype_of(first.dtype), shape, Tensor(first.dtype, shape, whole))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == rows:
        tensor = Tensor("float64", (rows,), struct.pack(f"<{rows}d", *map(float, numbers)))
        return Named(name, "FP64", (rows,), tensor)
    return Named(name, TEXTS, (rows,), tuple(_as_text(value) for value in values))


def _as_text(value: Value) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value.tolist() if isinstance(value, Tensor) else value).decode()


def _flat(name: str, data: Json | bytes, count: int) -> list[Json]:
    """The elements of a list in lists, as many as the shape says."""
    flat: list[Json] = data if isinstance(data, list) else []
    for _ in range(_DEEPEST):
        if not any(isinstance(item, list) for item in flat):
            break
        flat = [inner for item in flat for inner in (item if isinstance(item, list) else [item])]
    if len(flat) != count:
        raise ValidationFailed(f"Input {name}: its shape takes {count} elements, not {len(flat)}.")
    return flat


def _pack(name: str, dtype: str, flat: list[Json]) -> bytes:
    try:
        return struct.pack(f"<{len(flat)}{_FORMATS[dtype]}", *flat)
    except (struct.error, OverflowError, TypeError):
        raise ValidationFailed(f"Input {name}: an element is not a {dtype}.") from None


def _unpack_texts(name: str, data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4 + size
        if at > len(data):
            raise ValidationFailed(f"Input {name}: a length says more than there is.")
        yield data[at - size : at]


def _read_text(name: str, piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        raise ValidationFailed(f"Input {name}: BYTES must be UTF-8 texts here.") from None
