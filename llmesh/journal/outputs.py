"""Outputs that are kept beside their receipts, so that a retry gets the answer it has paid for."""

from __future__ import annotations

from collections.abc import Mapping

from llmesh.core.encoding import Value
from llmesh.core.inference import Chunk, output_of
from llmesh.journal.receipts import MAX_OUTPUT
from llmesh.wire.inference import decode_event, encode_event

__all__ = ["pack_output", "read_output"]


def pack_output(output: Mapping[str, Value]) -> bytes | None:
    """An output as it would travel; None for one that is too long to be kept.

    Raises ValidationFailed for values that cannot travel.
    """
    packed = encode_event(Chunk(0, values=output))
    return packed if len(packed) <= MAX_OUTPUT else None


def read_output(packed: bytes) -> dict[str, Value]:
    """The inverse."""
    event = decode_event(packed)
    return output_of([event]) if isinstance(event, Chunk) else {}
