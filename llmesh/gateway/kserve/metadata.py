"""GET routes of the Open Inference Protocol: what this server is, and what each model takes and gives."""

from __future__ import annotations

from collections.abc import Sequence

from quart import Response

from llmesh import __version__
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.model import (
    EMBEDDINGS,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    ModelInfo,
    TensorSpec,
)
from llmesh.core.reference import ModelRef
from llmesh.errors import ModelNotFound, NodeBusy
from llmesh.gateway.kserve.messages import (
    LiveAnswer,
    ReadyAnswer,
    ServerAnswer,
    TensorMetadata,
    V2Model,
)
from llmesh.gateway.kserve.tensors import datatype_of
from llmesh.gateway.models import Catalogue
from llmesh.gateway.request import Request
from llmesh.gateway.schema import encode
from llmesh.gateway.status import NodeView

__all__ = ["get_live", "get_model", "get_model_ready", "get_ready", "get_server", "ref_of"]

_TEXT = TensorMetadata("text", "BYTES", [-1])
_OUTPUTS = {
    TEXT_CLASSIFICATION: [TensorMetadata("label", "BYTES", [-1]), TensorMetadata("score", "FP64", [-1])],
    TOKEN_CLASSIFICATION: [TensorMetadata("tokens", "BYTES", [-1])],
    EMBEDDINGS: [TensorMetadata("embedding", "FP32", [-1, -1])],
    TEXT_GENERATION: [
        TensorMetadata("text", "BYTES", [-1]),
        TensorMetadata("finish_reason", "BYTES", [-1]),
    ],
}
"""What the tasks on texts give, in rows."""


def ref_of(request: Request) -> ModelRef:
    """The model of the path, with its version if there is one.  Raises ValidationFailed."""
    version = (request.view_args or {}).get("version")
    name = request.variable("model")
    return ModelRef.parse(f"{name}:{version}" if version else name)


async def get_server(request: Request) -> Response:
    """Tell what this is."""
    return _json(ServerAnswer("llmesh", __version__, ["binary_tensor_data"]))


async def get_live(request: Request) -> Response:
    """Answer as long as the event loop turns."""
    return _json(LiveAnswer(True))


async def get_ready(node: NodeView, request: Request) -> Response:
    """Answer 200 once requests can be served.  Raises NodeBusy before."""
    if not node.ready:
        raise NodeBusy("This node is still starting.", retry_after=1)
    return _json(ReadyAnswer(True))


async def get_model(catalogue: Catalogue, request: Request) -> Response:
    """Tell what a model takes and gives.  Raises ModelNotFound."""
    found = _offers(catalogue, ref_of(request))
    versions = sorted({offer.card.version for offer, _ in found})
    inputs, outputs = _signature(found[0][0].task, _own_info(catalogue, found))
    return _json(V2Model(_name(found), versions, "onnxruntime_onnx", inputs, outputs))


def _own_info(catalogue: Catalogue, found: Sequence[tuple[Offer, Announcement]]) -> ModelInfo | None:
    infos = (catalogue.info(offer.model_id) for offer, _ in found)
    return next((info for info in infos if info is not None), None)


def _signature(task: str, info: ModelInfo | None) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """The tensors of a task on texts, or those of a graph where it is this node's own."""
    if task in _OUTPUTS:
        return [_TEXT], _OUTPUTS[task]
    if info is None:
        return [], []
    return [_told(spec) for spec in info.inputs], [_told(spec) for spec in info.outputs]


def _told(spec: TensorSpec) -> TensorMetadata:
    shape = [length if isinstance(length, int) else -1 for length in spec.shape]
    return TensorMetadata(spec.name, datatype_of(spec.dtype), shape)


async def get_model_ready(catalogue: Catalogue, request: Request) -> Response:
    """Answer 200 where somebody serves it.  Raises ModelNotFound."""
    return _json(ReadyAnswer(True, _name(_offers(catalogue, ref_of(request)))))


def _name(found: Sequence[tuple[Offer, Announcement]]) -> str:
    """Where it was asked for by its id, that of its first offer."""
    return found[0][0].card.name


def _offers(catalogue: Catalogue, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
    found = catalogue.lookup(ref)
    if not found:
        raise ModelNotFound(f"Nobody offers {ref}.")
    return found


def _json(body: ServerAnswer | LiveAnswer | ReadyAnswer | V2Model) -> Response:
    return Response(encode(body), content_type="application/json")
