"""Codec of /llmesh/artifact/1.0.0: manifests and what is asked, to protobuf bytes and back.

Decoding checks every bound that protobuf lacks; whatever is wrong is one ValidationFailed.  Whether a
manifest is the one of the model that was asked for is for `core.manifest` to say.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from llmesh.core.ids import ModelId
from llmesh.core.manifest import DIGEST, MAX_FILES, MAX_PATH, Block, Manifest, ManifestFile
from llmesh.core.model import BundleFile
from llmesh.errors import ValidationFailed
from llmesh.wire import artifact_pb2 as pb

__all__ = [
    "MAX_MANIFEST", "decode_fetch", "decode_manifest", "decode_want", "encode_fetch", "encode_manifest",
    "encode_want",
]  # fmt: skip

MAX_MANIFEST = 8 << 20
"""Bytes of a manifest: enough for 64 GiB in the most files with long names."""
_MAX_REQUEST = 8 << 10

_M = TypeVar("_M", bound=Message)


def encode_fetch(model: ModelId) -> bytes:
    """The opener's first message."""
    return pb.Fetch(model_id=bytes.fromhex(model)).SerializeToString()


def decode_fetch(data: bytes) -> ModelId:
    """Which model a peer wants.  Raises ValidationFailed."""
    message = _parse(pb.Fetch, data, _MAX_REQUEST)
    if len(message.model_id) != DIGEST:
        raise ValidationFailed(f"A model id has {DIGEST} bytes.")
    return ModelId(message.model_id.hex())


def encode_manifest(manifest: Manifest) -> bytes:
    """The handler's first answer."""
    return pb.Manifest(files=map(_file_to_wire, manifest.files)).SerializeToString()


def decode_manifest(data: bytes) -> Manifest:
    """A manifest as a peer gave it, still to be checked.  Raises ValidationFailed."""
    message = _parse(pb.Manifest, data, MAX_MANIFEST)
    if len(message.files) > MAX_FILES:
        raise ValidationFailed(f"A manifest lists at most {MAX_FILES} files.")
    return Manifest(tuple(map(_file, message.files)))


def encode_want(block: Block) -> bytes:
    """One wish of the opener."""
    return pb.Want(path=block.path, number=block.number).SerializeToString()


def decode_want(data: bytes) -> Block:
    """Which block a peer wants.  Raises ValidationFailed."""
    message = _parse(pb.Want, data, _MAX_REQUEST)
    return Block(message.path, message.number)


def _file_to_wire(entry: ManifestFile) -> pb.File:
    file = entry.file
    return pb.File(
        path=file.path,
        size=file.size,
        sha256=bytes.fromhex(file.sha256),
        blocks=b"".join(entry.digests),
    )


def _file(message: pb.File) -> ManifestFile:
    joined = message.blocks
    if len(message.path) > MAX_PATH or len(message.sha256) != DIGEST or len(joined) % DIGEST:
        raise ValidationFailed("A file of a manifest has a path and digests of the proper length.")
    digests = tuple(joined[start : start + DIGEST] for start in range(0, len(joined), DIGEST))
    return ManifestFile(BundleFile(message.path, message.size, message.sha256.hex()), digests)


def _parse(kind: type[_M], data: bytes, limit: int) -> _M:
    if len(data) > limit:
        raise ValidationFailed(f"A {kind.__name__} of {len(data)} bytes is over its limit of {limit}.")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValidationFailed(f"{len(data)} bytes are not a {kind.__name__} of an artifact.") from None
