"""The JSON shapes of a node's own models: what is said of one that is brought, and of one that is there."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from llmesh.core.amount import Amount
from llmesh.core.announcement import MAX_DESCRIPTION
from llmesh.gateway.schema import ModelBody, parse_amount

__all__ = [
    "METADATA_LIMIT",
    "UPLOADS",
    "DeployBody",
    "DeployedBody",
    "MetadataBody",
    "ModelDetailBody",
    "RemovedBody",
    "UploadQuery",
    "decode_deploy",
    "decode_metadata",
]

METADATA_LIMIT = 64 * 1024
"""Bytes that the metadata of an uploaded model may take as JSON."""

_Fee = Annotated[int | float | str, Meta(description="MESH for one inference; a number or its decimal text.")]


class _Said(Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[str, Meta(min_length=1, max_length=64)] = "1.0.0"
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)] = ""
    fee: _Fee = 0

    @property
    def price(self) -> Amount:
        """`fee` as money.  Raises ValidationFailed."""
        return parse_amount(self.fee, "fee")


class MetadataBody(_Said):
    """What is said of a model that is brought."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]


class UploadQuery(_Said):
    """The same, for a model that is the whole body; then it must have a name."""

    name: Annotated[str, Meta(max_length=128, description="Of a model that is the whole body.")] = ""


class DeployBody(MetadataBody):
    """A model that lies on the node's own disk; only for callers on the same machine."""

    path: Annotated[
        str,
        Meta(
            min_length=1, max_length=4096, description="A folder, an .onnx file, or an archive of a folder."
        ),
    ]


class DeployedBody(Struct):
    """A model that is served now."""

    model_id: str
    name: str
    version: str


class RemovedBody(Struct):
    """A model that is served no longer."""

    model_id: str


class ModelDetailBody(Struct):
    """One model: whether this node serves it, and every offer of it that is known."""

    model_id: str
    own: Annotated[bool, Meta(description="Whether this node serves it.")]
    offers: list[ModelBody]


_, _shapes = msgspec.json.schema_components([MetadataBody])
UPLOADS: dict[str, dict[str, Any]] = {
    "multipart/form-data": {
        "type": "object",
        "required": ["metadata", "file"],
        "properties": {
            "metadata": _shapes["MetadataBody"],
            "file": {
                "type": "string",
                "format": "binary",
                "description": "An .onnx file, or a .zip or .tar of a folder.",
            },
        },
        "additionalProperties": False,
    },
    "application/octet-stream": {
        "type": "string",
        "format": "binary",
        "description": "The same file, with the metadata as query.",
    },
}
decode_deploy = msgspec.json.Decoder(DeployBody).decode
decode_metadata = msgspec.json.Decoder(MetadataBody).decode
