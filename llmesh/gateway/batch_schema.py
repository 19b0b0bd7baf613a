"""The JSON shapes of a batch of inferences."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llmesh.gateway.schema import Problem

__all__ = ["MAX_ROWS", "BatchBody", "RowBody", "RowsBody", "decode_batch"]

MAX_ROWS = 1000

_ROW: dict[str, Any] = {
    "anyOf": [{"$ref": "#/components/schemas/InferenceBody"}, {}],
    "description": "An inference as in POST /api/v1/inference; one that is malformed fails alone.",
}


class BatchBody(Struct, forbid_unknown_fields=True):
    """Inferences to run, each on its own."""

    requests: Annotated[
        list[Annotated[Raw, Meta(extra_json_schema=_ROW)]], Meta(min_length=1, max_length=MAX_ROWS)
    ]


class RowBody(Struct, omit_defaults=True):
    """What became of one of them: a result (or, for a dry run, a plan), or an error."""

    result: (
        Annotated[
            Raw,
            Meta(
                extra_json_schema={
                    "anyOf": [
                        {"$ref": "#/components/schemas/ResultBody"},
                        {"$ref": "#/components/schemas/PlanBody"},
                    ]
                }
            ),
        ]
        | UnsetType
    ) = UNSET
    error: Problem | UnsetType = UNSET


class RowsBody(Struct):
    """What became of each inference, in the order in which they were sent."""

    request_id: str
    results: list[RowBody]


decode_batch = msgspec.json.Decoder(BatchBody).decode
