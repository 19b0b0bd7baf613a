"""The JSON shapes of the Open Inference Protocol (KServe V2), errors too."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from quart import Response

from llmesh.gateway.schema import Problem, encode

__all__ = [
    "InferAnswer",
    "InferBody",
    "InputTensor",
    "LiveAnswer",
    "OutputTensor",
    "ReadyAnswer",
    "ServerAnswer",
    "TensorMetadata",
    "V2Error",
    "V2Model",
    "WantedOutput",
    "decode_infer",
    "tell_error",
]

MAX_TENSORS = 256
_Parameters = dict[str, bool | int | float | str]
_NONE: _Parameters = {}
_Length = Annotated[int, Meta(ge=0, le=1 << 32)]
_Shape = Annotated[list[_Length], Meta(max_length=16)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class InputTensor(Struct):
    """An input: its elements are in `data`, or in the bytes after the JSON (`binary_data_size`)."""

    name: _Name
    datatype: str
    shape: _Shape
    data: Any = None
    parameters: _Parameters = _NONE


class WantedOutput(Struct):
    """An output that is wanted; with `binary_data` in its parameters, as bytes after the JSON."""

    name: _Name
    parameters: _Parameters = _NONE


class InferBody(Struct):
    """What to run the model on; `parameters` are further named values of the model (`max_tokens`)."""

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=MAX_TENSORS)]
    id: str = ""
    outputs: Annotated[list[WantedOutput], Meta(max_length=MAX_TENSORS)] = []
    parameters: _Parameters = _NONE


class OutputTensor(Struct):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


class InferAnswer(Struct):
    """What the model said; `parameters` tell who served and what it cost."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[str, Any]


class TensorMetadata(Struct):
    """An input or output of a model; a length of -1 is free."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(Struct):
    """What a model takes and gives; both lists are empty for tensors of a peer's model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerAnswer(Struct):
    """Who this is."""

    name: str
    version: str
    extensions: list[str]


class LiveAnswer(Struct):
    """Whether the node's process is alive."""

    live: bool


class ReadyAnswer(Struct):
    """Whether it serves."""

    ready: bool
    name: str | UnsetType = UNSET


class V2Error(Struct):
    """An error as the protocol has it."""

    error: str


def tell_error(told: Problem) -> Response:
    """The answer that tells a problem; a request that is not right is a bad request there.

    The protocol has one text for all, so it begins with the code and the name.
    """
    status = 400 if told.status == 422 else told.status
    row = "" if told.code is UNSET else f"[{told.code} {told.name}] "
    body = V2Error(f"{row}{told.detail} {told.next_step}".strip())
    return Response(encode(body), status, content_type="application/json")


decode_infer = msgspec.json.Decoder(InferBody).decode
