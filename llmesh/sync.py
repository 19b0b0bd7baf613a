"""The blocking client, for plain scripts and notebooks: `from llmesh.sync import MeshClient`."""

from llmesh_sdk.sync import InferenceStream, MeshClient, Subscription

__all__ = ["InferenceStream", "MeshClient", "Subscription"]
