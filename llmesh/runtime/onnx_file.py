"""Which other files an ONNX file names, read without loading it.

A reader of the few parts of the protobuf form (onnx.proto, field numbers of ONNX IR 3 and later)
that can hold a tensor with external data.  It takes any bytes: one pass, constant memory, bounded
work.  It does not judge the graph; the worker's library does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from llmesh.errors import ValidationFailed

__all__ = ["external_data"]

_MAX_FIELDS = 4_000_000
_MAX_DEPTH = 100  # protobuf's own limit

# kind of message -> field number -> kind of message inside
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_LENGTH_DELIMITED = 2


def external_data(path: Path) -> frozenset[str]:
    """The locations of external data in an ONNX file, as written there.

    Raises ValidationFailed for what is not an ONNX file or is cut short, OSError if unreadable.
    """
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise ValidationFailed(f"{path.name} is a Git LFS pointer, not the model; run `git lfs pull`.")
        file.seek(0)
        reader = _Reader(file)
        try:
            reader.read_message("model", os.fstat(file.fileno()).st_size, 0)
        except _NotOnnxError as error:
            raise ValidationFailed(f"{path.name} is not a whole ONNX file: {error}.") from None
    if not reader.graphs:
        raise ValidationFailed(f"{path.name} is not an ONNX file: there is no graph in it.")
    return frozenset(reader.locations)


class _NotOnnxError(Exception):
    """The bytes are not those of an ONNX file; the text says where they stop making sense."""


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._fields = 0
        self.graphs = 0
        self.locations: set[str] = set()

    def read_message(self, kind: str, end: int, depth: int) -> None:
        """Walk one message up to the offset `end`."""
        if depth > _MAX_DEPTH:
            raise _NotOnnxError(f"more than {_MAX_DEPTH} levels within each other")
        self.graphs += kind == "graph"
        inside = _INSIDE[kind]
        while self._at < end:
            number, wire_type, size = self._field(end)
            if wire_type != _LENGTH_DELIMITED or number not in inside:
                self._skip(size)
            elif inside[number] == "entry":
                self._read_entry(self._at + size)
            else:
                self.read_message(inside[number], self._at + size, depth + 1)

    def _read_entry(self, end: int) -> None:
        """A StringStringEntryProto: key 1, value 2."""
        entry = {1: b"", 2: b""}
        while self._at < end:
            number, wire_type, size = self._field(end)
            if wire_type == _LENGTH_DELIMITED and number in entry and size <= 4096:
                entry[number] = self._file.read(size)
                self._at += size
            else:
                self._skip(size)
        if entry[1] == b"location":
            self.locations.add(entry[2].decode(errors="surrogateescape"))

    def _field(self, end: int) -> tuple[int, int, int]:
        """Number, wire type and length of the next field, whose content lies before `end`."""
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise _NotOnnxError(f"more than {_MAX_FIELDS:,} parts")
        number, wire_type = divmod(self._varint(), 8)
        if wire_type == 0:
            self._varint()
            size = 0
        elif wire_type == _LENGTH_DELIMITED:
            size = self._varint()
        elif wire_type in _FIXED:
            size = _FIXED[wire_type]
        else:
            raise _NotOnnxError(f"byte {self._at} starts no field")
        if number == 0 or self._at + size > end:
            raise _NotOnnxError(f"it breaks off or goes wrong at byte {self._at}")
        return number, wire_type, size

    def _varint(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._file.read(1)
            if not byte:
                raise _NotOnnxError(f"it breaks off at byte {self._at}")
            self._at += 1
            number |= (byte[0] & 127) << shift
            if byte[0] < 128:
                return number
            shift += 7
        raise _NotOnnxError(f"byte {self._at} ends no number")

    def _skip(self, size: int) -> None:
        if size:
            self._at += size
            self._file.seek(self._at)
