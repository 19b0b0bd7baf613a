"""Values on their way: tensors, and the canonical JSON that signatures cover."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmesh.errors import ValidationFailed

__all__ = ["DTYPES", "Json", "Tensor", "Value", "canonical_json", "parse_canonical_json"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

DTYPES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4,
    "uint64": 8, "int64": 8, "float16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Element types a tensor may have, numpy's names, with their size in bytes."""


_FORMATS = {
    "bool": "?", "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "uint64": "Q", "int64": "q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense array: `data` holds the elements in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        size = DTYPES.get(self.dtype)
        if size is None:
            raise ValidationFailed(
                f"A tensor's dtype must be one of {', '.join(DTYPES)}, not {self.dtype[:40]!r}."
            )
        if len(self.shape) > 16 or any(n < 0 for n in self.shape):
            raise ValidationFailed("A tensor's shape must be at most 16 lengths, each 0 or more.")
        wanted = math.prod(self.shape) * size
        if wanted != len(self.data):
            raise ValidationFailed(
                f"A {self.dtype} tensor of shape {list(self.shape)} takes {wanted} bytes,"
                f" not {len(self.data)}."
            )

    def tolist(self) -> Json:
        """Nested lists of the shape, in Python's own numbers; a bare one without dimensions."""
        count = len(self.data) // DTYPES[self.dtype]
        return _shaped(struct.unpack(f"<{count}{_FORMATS[self.dtype]}", self.data), self.shape)


def _shaped(flat: Sequence[Json], shape: Sequence[int]) -> Json:
    if not flat:  # a peer may claim a billion rows of nothing
        return []
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return list(flat)
    step = len(flat) // shape[0]
    return [_shaped(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


Value: TypeAlias = "Json | Tensor"
"""What an input or an output has under a name."""


def canonical_json(value: Json) -> bytes:
    """The one byte string for a value: sorted keys, no spaces, UTF-8, integers only.

    After RFC 8785, less its floats, which nothing we sign needs.  Raises ValidationFailed.
    """
    _refuse_floats(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValidationFailed("A text holds half of a surrogate pair.") from None


def parse_canonical_json(data: bytes) -> Json:
    """The inverse; refuses every other spelling of the same value.  Raises ValidationFailed."""
    try:
        value: Json = json.loads(data)
        again = canonical_json(value)
    except (ValueError, RecursionError):
        raise ValidationFailed("A signed record is not JSON.") from None
    if again != data:
        raise ValidationFailed("A signed record is not in canonical form.")
    return value


def _refuse_floats(value: Json) -> None:
    if isinstance(value, float):
        raise ValidationFailed("A signed record holds whole numbers only.")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_floats(item)
