"""The one digest of an inference's input or output, whoever computes it and however it travelled.

BLAKE3 over tagged values, names sorted: a receipt commits to what was asked and answered without
holding it.  A number that is whole is the same number as int and as float, since JSON may lose the
difference on its way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from llmesh import crypto
from llmesh.core.encoding import Json, Tensor, Value
from llmesh.errors import ValidationFailed

__all__ = ["values_digest"]

_DOMAIN = b"llmesh values 1\n"
_EXACT = 1 << 53
"""Up to here every whole number has its own float (IEEE 754)."""


def values_digest(values: Mapping[str, Value]) -> bytes:
    """32 bytes that stand for these named values.

    Raises ValidationFailed for what JSON cannot hold: NaN, infinities, halves of surrogate pairs.
    """
    return crypto.blake3_of(_parts(values))


def _parts(values: Mapping[str, Value]) -> Iterator[bytes]:
    """Every value as a tag and what makes it that value, in one order; never recurses."""
    yield _DOMAIN
    yield _counted(b"o", len(values))
    waiting: list[tuple[str | None, Value]] = _last_first(values)
    while waiting:
        name, value = waiting.pop()
        if name is not None:
            yield from _text(name)
        if isinstance(value, dict):
            yield _counted(b"o", len(value))
            waiting.extend(_last_first(value))
        elif isinstance(value, list):
            yield _counted(b"a", len(value))
            waiting.extend((None, item) for item in reversed(value))
        elif isinstance(value, Tensor):
            yield from _tensor(value)
        else:
            yield from _scalar(value)


def _last_first(values: Mapping[str, Value]) -> list[tuple[str | None, Value]]:
    return [(name, values[name]) for name in sorted(values, reverse=True)]


def _scalar(value: Json) -> Iterator[bytes]:
    if isinstance(value, str):
        yield from _text(value)
    elif value is None or isinstance(value, bool):
        yield {None: b"n", False: b"f", True: b"t"}[value]
    elif isinstance(value, float) and not (value.is_integer() and abs(value) <= _EXACT):
        if value - value != 0:
            raise ValidationFailed("A value is NaN or infinite.")
        yield b"d" + struct.pack("<d", value)
    elif isinstance(value, int | float):
        yield from _sized(b"i", f"{int(value):x}".encode())


def _tensor(tensor: Tensor) -> Iterator[bytes]:
    yield from _sized(b"T", tensor.dtype.encode())
    yield _counted(b"", len(tensor.shape))
    yield struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
    yield tensor.data  # its size follows from dtype and shape


def _text(text: str) -> Iterator[bytes]:
    try:
        yield from _sized(b"s", text.encode())
    except UnicodeEncodeError:
        raise ValidationFailed("A text holds half of a surrogate pair.") from None


def _sized(tag: bytes, data: bytes) -> Iterator[bytes]:
    yield _counted(tag, len(data))
    yield data


def _counted(tag: bytes, count: int) -> bytes:
    return tag + count.to_bytes(8, "little")
