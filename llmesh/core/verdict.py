"""The one error for a request that several providers failed, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from llmesh.core.ids import PeerId
from llmesh.errors import (
    InsufficientBalance,
    MeshError,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    TransactionFailed,
    error_from_code,
)

__all__ = ["Failure", "named_once", "tried", "verdict"]

Failure: TypeAlias = tuple[PeerId, MeshError]
"""Who failed, and how."""

_TELLING: tuple[type[MeshError], ...] = (
    NodeBusy,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    InsufficientBalance,
    TransactionFailed,
    NodeUnreachable,
)
"""Of several failures the first of these tells a caller most; any other error comes after."""


def verdict(failures: Sequence[Failure]) -> MeshError:
    """The most telling of at least one failure, with what else was tried in its message."""
    telling = min((error for _, error in failures), key=_weight)
    if len(failures) == 1:
        return telling
    return error_from_code(
        telling.code,
        f"{telling.message} No provider answered{tried(failures)}.",
        peer_id=telling.peer_id,
        remote=telling.remote,
        retry_after=telling.retry_after,
        next_step=telling.next_step,
    )


def _weight(error: MeshError) -> int:
    return _TELLING.index(type(error)) if type(error) in _TELLING else len(_TELLING)


def named_once(message: str, peer: PeerId) -> str:
    """A reason of ours in which each floor had named the peer, with the peer and each cause told once.

    "The session with P is over: The link to peer P broke: it ended." becomes "The session with P is
    over: it ended."; causes are parted by "; ".
    """
    head, named, rest = message.partition(peer)
    what, _, causes = rest.partition(": ")
    if peer not in causes:
        return message
    return f"{head}{named}{what}: {'; '.join(_innermost(cause, peer) for cause in causes.split('; '))}"


def _innermost(cause: str, peer: PeerId) -> str:
    _, named, rest = cause.rpartition(peer)
    return rest.partition(": ")[2] or rest.strip() if named else cause


def tried(failures: Sequence[Failure]) -> str:
    """Whom the request was tried with, in brackets; nothing if nobody."""
    shown = [f"{peer[-8:]}: {error.name}" for peer, error in failures]
    return f" ({len(shown)} tried: {', '.join(shown)})" if shown else ""
