"""The names of things: peers, models, requests."""

from __future__ import annotations

import re
from typing import NamedTuple, NewType

from llmesh.errors import ValidationFailed

__all__ = [
    "AttemptId", "ModelId", "PeerId", "RequestId", "is_keyed", "keyed_id", "model_id", "peer_id",
    "request_id",
]  # fmt: skip

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58; it contains the Ed25519 public key of the node it names."""

ModelId = NewType("ModelId", str)
"""64 hex digits: SHA-256 over the sorted (path, size, SHA-256) of a bundle's files."""

RequestId = NewType("RequestId", str)
"""32 hex digits made by whoever asks: random, or from a key if the request may come again."""


class AttemptId(NamedTuple):
    """One attempt at a request: what is paid once, however often it is sent."""

    request: RequestId
    number: int


_KEYED = "00"
"""How an id ends that was made from a key.  Of random ones one in 256 does so too, which costs a look."""

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_HEX32 = re.compile(r"[0-9a-f]{32}\Z")
# 12D3KooW... : the identity multihash of an Ed25519 public key is always 52 base58 digits.
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")


def peer_id(text: str) -> PeerId:
    """Check the shape of a peer id.  Raises ValidationFailed."""
    if not _PEER.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not the peer id of an Ed25519 key (12D3KooW...).")
    return PeerId(text)


def model_id(text: str) -> ModelId:
    """Check the shape of a model id.  Raises ValidationFailed."""
    if not _HEX64.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not a model id (64 hex digits).")
    return ModelId(text)


def request_id(text: str) -> RequestId:
    """Check the shape of a request id.  Raises ValidationFailed."""
    if not _HEX32.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not a request id (32 hex digits).")
    return RequestId(text)


def keyed_id(digest: bytes) -> RequestId:
    """The id of a request that may come again, from at least 15 bytes that are the same each time."""
    return RequestId(digest[:15].hex() + _KEYED)


def is_keyed(id: RequestId) -> bool:
    """Whether a request of this id may have come before."""
    return id.endswith(_KEYED)
