"""The one table of error codes: each class body is a row.

Codes 1001 to 3002 are the user's contract, the rest are ours.  Nothing else in the program lists
codes: wire, HTTP, WebSocket and SDK ask this module.  `remote` tells whether a peer said it or we
found it ourselves, which decides whether the next candidate may still be tried.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ERRORS",
    "Conflict",
    "InsufficientBalance",
    "InsufficientStake",
    "MeshError",
    "ModelFailed",
    "ModelNotFound",
    "NetworkError",
    "NodeBusy",
    "NodeUnreachable",
    "NotFound",
    "RateLimited",
    "RequestTimeout",
    "TooLarge",
    "TransactionFailed",
    "Unauthorized",
    "UnknownError",
    "ValidationFailed",
    "error_from_code",
]


class MeshError(Exception):
    """Base of every error that crosses a boundary of LLMESH (wire, HTTP, WebSocket, SDK).

    `message` says what happened and why, `next_step` what to do about it: the row's own, or that of one
    error where it is given.  `str()` gives both with the code and, where known, the request id.
    """

    code: ClassVar[int]
    name: ClassVar[str]
    http_status: ClassVar[int]
    next_step: str
    next_if_local: ClassVar[bool] = False
    next_if_remote: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        request_id: str | None = None,
        peer_id: str | None = None,
        remote: bool = False,
        retry_after: float | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if next_step is not None:
            self.next_step = next_step
        self.request_id = request_id
        self.peer_id = peer_id
        self.remote = remote
        self.retry_after = retry_after

    def try_next(self) -> bool:
        """Whether another provider may still answer the request that failed like this."""
        return self.next_if_remote if self.remote else self.next_if_local

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"[{self.code} {self.name}] {self.message} {self.next_step}{request}"


class ModelNotFound(MeshError):
    """No valid offer of the model is known."""

    code, name, http_status = 1001, "ModelNotFound", 404
    next_step = "Search the models on offer, or deploy this one."
    next_if_remote = True


class InsufficientStake(MeshError):
    """The stake is below the network's minimum."""

    code, name, http_status = 1002, "InsufficientStake", 403
    next_step = "Bond more stake (--stake) and announce again."
    next_if_remote = True


class RequestTimeout(MeshError):
    """The caller's deadline passed before the answer came."""

    code, name, http_status = 1003, "RequestTimeout", 504
    next_step = "Ask again with a longer timeout."


class ValidationFailed(MeshError):
    """A request, a model or a peer's answer is not well formed."""

    code, name, http_status = 1004, "ValidationFailed", 422
    next_step = "Correct what is named and send it again."

    def try_next(self) -> bool:
        """No for a bad request, whoever says so; yes where we found a peer's own answer wanting."""
        return self.peer_id is not None and not self.remote


class NetworkError(MeshError):
    """The connection broke while the request was under way."""

    code, name, http_status = 2001, "NetworkError", 502
    next_step = "Try again; if it persists, check this node's connection."
    next_if_local = next_if_remote = True


class NodeUnreachable(MeshError):
    """No provider could be reached in time."""

    code, name, http_status = 2002, "NodeUnreachable", 503
    next_step = "Try again shortly, or choose another provider."
    next_if_local = next_if_remote = True


class NodeBusy(MeshError):
    """The provider has no room; `retry_after` (seconds) says when to ask again."""

    code, name, http_status = 2003, "NodeBusy", 503
    next_step = "Wait for the time in Retry-After and ask again."
    next_if_local = next_if_remote = True


class ModelFailed(MeshError):
    """The model's worker died, ran out of memory, or the runtime reported an error."""

    code, name, http_status = 2004, "ModelFailed", 502
    next_step = "Try again; if it persists, the model or its input is at fault."
    next_if_local = next_if_remote = True


class InsufficientBalance(MeshError):
    """Balance, channel or budget does not cover the price."""

    code, name, http_status = 3001, "InsufficientBalance", 402
    next_step = "Ask for less, or get more MESH: by an invite with a credit, or sent by another member."


class TransactionFailed(MeshError):
    """The ledger refused or lost a transaction; settlement tries again by itself."""

    code, name, http_status = 3002, "TransactionFailed", 502
    next_step = "Nothing is lost and nothing is paid twice; try again shortly."


class Unauthorized(MeshError):
    """The key or the origin of the request does not allow it."""

    code, name, http_status = 4001, "Unauthorized", 401
    next_step = "Use a valid key and an allowed host."


class RateLimited(MeshError):
    """Too many requests; `retry_after` (seconds) says when to ask again."""

    code, name, http_status = 4002, "RateLimited", 429
    next_step = "Wait for the time in Retry-After and ask again."


class Conflict(MeshError):
    """The request contradicts an earlier one or the present state."""

    code, name, http_status = 4003, "Conflict", 409
    next_step = "Look at the present state first; where a key is involved, use a new one."


class TooLarge(MeshError):
    """The body or a field of it is over its limit."""

    code, name, http_status = 4004, "TooLarge", 413
    next_step = "Send less at once."


class NotFound(MeshError):
    """There is nothing of that id here; for models see ModelNotFound."""

    code, name, http_status = 4005, "NotFound", 404
    next_step = "List what there is, and use an id from there."


ERRORS: dict[int, type[MeshError]] = {
    row.code: row
    for row in (
        ModelNotFound, InsufficientStake, RequestTimeout, ValidationFailed,
        NetworkError, NodeUnreachable, NodeBusy, ModelFailed,
        InsufficientBalance, TransactionFailed,
        Unauthorized, RateLimited, Conflict, TooLarge, NotFound,
    )
}  # fmt: skip


class UnknownError(MeshError):
    """A code from a newer version of the protocol; it is kept as it came."""

    code, name, http_status = 0, "UnknownError", 502
    next_step = "Update this side to learn what the code means."
    next_if_local = next_if_remote = True


def error_from_code(
    code: int,
    message: str,
    *,
    request_id: str | None = None,
    peer_id: str | None = None,
    remote: bool = True,
    retry_after: float | None = None,
    next_step: str | None = None,
) -> MeshError:
    """The error a code stands for; an unknown code survives as an `UnknownError` that carries it.

    The texts may be anybody's and end in logs and terminals: what is not printable becomes `?`.
    """
    error = ERRORS.get(code, UnknownError)(
        _printable(message),
        request_id=request_id,
        peer_id=peer_id,
        remote=remote,
        retry_after=retry_after,
        next_step=None if next_step is None else _printable(next_step),
    )
    if error.code != code:
        error.code = code  # type: ignore[misc]  # the one row whose code is data
    return error


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
