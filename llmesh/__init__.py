"""LLMESH: an open mesh of nodes that run ONNX models for each other.

Names are loaded when first used, so that `import llmesh` stays light: the SDK's extra-free install
has `MeshClient`, the values and the errors; `MeshNode` needs the extra `[node]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmesh_sdk import MeshClient

    from llmesh.core.amount import Amount
    from llmesh.core.encoding import Tensor
    from llmesh.core.ids import ModelId, PeerId, RequestId
    from llmesh.core.inference import Result, Usage
    from llmesh.core.model import Card, ModelInfo, TensorSpec
    from llmesh.core.reference import ModelRef
    from llmesh.errors import (
        Conflict,
        InsufficientBalance,
        InsufficientStake,
        MeshError,
        ModelFailed,
        ModelNotFound,
        NetworkError,
        NodeBusy,
        NodeUnreachable,
        NotFound,
        RateLimited,
        RequestTimeout,
        TooLarge,
        TransactionFailed,
        Unauthorized,
        UnknownError,
        ValidationFailed,
    )
    from llmesh.node.faults import NodeStateError, StartRefused
    from llmesh.node.node import MeshNode

__version__ = "0.1.0"

__all__ = [
    "Amount",
    "Card",
    "Conflict",
    "InsufficientBalance",
    "InsufficientStake",
    "MeshClient",
    "MeshError",
    "MeshNode",
    "ModelFailed",
    "ModelId",
    "ModelInfo",
    "ModelNotFound",
    "ModelRef",
    "NetworkError",
    "NodeBusy",
    "NodeStateError",
    "NodeUnreachable",
    "NotFound",
    "PeerId",
    "RateLimited",
    "RequestId",
    "RequestTimeout",
    "Result",
    "StartRefused",
    "Tensor",
    "TensorSpec",
    "TooLarge",
    "TransactionFailed",
    "Unauthorized",
    "UnknownError",
    "Usage",
    "ValidationFailed",
    "__version__",
]

_HOMES = {
    "llmesh.core.amount": ("Amount",),
    "llmesh.core.encoding": ("Tensor",),
    "llmesh.core.ids": ("ModelId", "PeerId", "RequestId"),
    "llmesh.core.inference": ("Result", "Usage"),
    "llmesh.core.model": ("Card", "ModelInfo", "TensorSpec"),
    "llmesh.core.reference": ("ModelRef",),
    "llmesh.node.faults": ("NodeStateError", "StartRefused"),
    "llmesh.node.node": ("MeshNode",),
    "llmesh_sdk": ("MeshClient",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'llmesh' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "llmesh.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
