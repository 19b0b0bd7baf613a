"""The fields of a signed JSON record, checked one by one; each function raises ValidationFailed."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from llmesh.core.amount import Amount
from llmesh.core.encoding import Json, parse_canonical_json
from llmesh.errors import ValidationFailed

__all__ = ["MAX_RECORD", "amount", "exactly", "hexed", "listed", "parse", "text", "whole"]

MAX_RECORD = 64 * 1024
"""Bytes of one record; checked before anything is parsed."""

_MICRO = re.compile(r"(?:0|[1-9][0-9]{0,38})\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")


def parse(payload: bytes, what: str) -> dict[str, Json]:
    """The object that these bytes of canonical JSON are."""
    if len(payload) > MAX_RECORD:
        raise ValidationFailed(f"{what} takes at most {MAX_RECORD} bytes, not {len(payload)}.")
    record = parse_canonical_json(payload)
    if not isinstance(record, dict):
        raise ValidationFailed(f"{what} must be an object.")
    return record


def exactly(record: dict[str, Json], names: AbstractSet[str]) -> None:
    """Refuse a record with other fields than these."""
    if record.keys() != names:
        odd = ", ".join(sorted(record.keys() ^ names))
        raise ValidationFailed(f"A record lacks fields, or has unknown ones: {odd[:80]}.")


def listed(value: Json, limit: int) -> list[Json]:
    """A list of at most so many."""
    if not isinstance(value, list) or len(value) > limit:
        raise ValidationFailed(f"A field must be a list of at most {limit}.")
    return value


def text(value: Json) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValidationFailed("A field must be a text.")
    return value


def hexed(value: Json, size: int | None = None) -> bytes:
    """Bytes in lower-case hex, so many of them if told."""
    digits = text(value)
    if not _HEX.match(digits) or size not in (None, len(digits) // 2):
        raise ValidationFailed(f"A field must be lower-case hex of {size or 'whole'} bytes.")
    return bytes.fromhex(digits)


def amount(value: Json) -> Amount:
    """Whole micro-MESH as decimal digits; nothing negative, fractional or of 2**128 and above."""
    digits = text(value)
    if not _MICRO.match(digits):
        raise ValidationFailed(f"{digits[:40]!r} is not an amount in whole micro-MESH.")
    return Amount(int(digits))


def whole(value: Json, most: int = (1 << 53) - 1) -> int:
    """A whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValidationFailed(f"A field must be a whole number from 0 to {most}.")
    return value
