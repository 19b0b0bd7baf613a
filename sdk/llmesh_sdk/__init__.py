"""The Python SDK: a thin client of a node's gateway, for asyncio and trio.

It needs none of the node's libraries; the HTTP client is loaded with the first call.
"""

from llmesh_sdk.client import MeshClient
from llmesh_sdk.receipts import AnswerReceipt
from llmesh_sdk.results import (
    InferencePlan,
    InferenceResult,
    MeshEvent,
    ModelOffer,
    NodeStatus,
    StreamChunk,
    Webhook,
)

__all__ = [
    "AnswerReceipt",
    "InferencePlan",
    "InferenceResult",
    "MeshClient",
    "MeshEvent",
    "ModelOffer",
    "NodeStatus",
    "StreamChunk",
    "Webhook",
]
