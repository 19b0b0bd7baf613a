"""Every failure of a request becomes problem details (RFC 9457) here, and nowhere else.

Errors of the table keep their code and status.  Faults of HTTP itself (no such route, wrong method,
wrong media type, slow body) are told in the table's words under HTTP's own status.  Anything else
is a bug of ours: 500, logged once with its traceback, no row of the table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

from quart import Response
from werkzeug.exceptions import HTTPException

from llmesh.core.ids import RequestId
from llmesh.errors import MeshError, RequestTimeout, TooLarge, Unauthorized, ValidationFailed
from llmesh.gateway.limits import OverLimit
from llmesh.gateway.schema import Problem, encode, problem

__all__ = ["PROBLEM_JSON", "Tell", "answer_to", "problem_of", "tell_problem"]

PROBLEM_JSON = "application/problem+json"

Tell: TypeAlias = Callable[[Problem], Response]
"""How a face of the gateway tells a problem."""

_log = logging.getLogger(__name__)


def tell_problem(told: Problem) -> Response:
    """As RFC 9457 has it."""
    return Response(encode(told), told.status, content_type=PROBLEM_JSON)


def answer_to(error: Exception, request_id: RequestId, tell: Tell = tell_problem) -> Response:
    """The response that tells a failure."""
    told = problem_of(error, request_id)
    response = tell(told)
    if isinstance(told.retry_after, float | int):
        response.headers["Retry-After"] = str(max(1, math.ceil(told.retry_after)))
    if isinstance(error, OverLimit):
        response.headers.update(error.headers)
    if told.status == Unauthorized.http_status:
        response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 wants one with each 401
    if isinstance(error, HTTPException):
        response.headers.extend((name, value) for name, value in error.get_headers() if name == "Allow")
    return response


def problem_of(error: Exception, request_id: RequestId) -> Problem:
    """What went wrong; a bug of ours is logged here."""
    match error:
        case MeshError():
            return problem(error, error.http_status, request_id)
        case HTTPException(code=int(status)):
            return problem(_in_our_words(error, status), status, request_id)
        case _:
            _log.error("A request failed through a fault of this node: %s", request_id, exc_info=error)
            return _bug(request_id)


def _in_our_words(error: HTTPException, status: int) -> MeshError:
    match status:
        case 404:
            return ValidationFailed("There is nothing at this path; see /docs for what there is.")
        case 405:
            return ValidationFailed("This path does not take this method; Allow says which it takes.")
        case 408:
            return RequestTimeout("The body did not arrive in time.")
        case 413:
            return TooLarge(error.description or error.name)
        case _:
            return ValidationFailed(error.description or error.name)


def _bug(request_id: RequestId) -> Problem:
    return Problem(
        type="about:blank",
        title="Internal Server Error",
        status=500,
        detail="This node failed to handle the request through a fault of its own.",
        request_id=request_id,
        next_step="Try again; if it persists, report it with the request id and the node's log.",
    )
