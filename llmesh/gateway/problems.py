"""Every failure of a request becomes problem details (RFC 9457) here, and nowhere else.

Errors of the table keep their code and status.  Faults of HTTP itself (no such route, wrong method,
wrong media type, slow body) are told in the table's words under HTTP's own status.  Anything else
is a bug of ours: 500, logged once with its traceback, no row of the table.
"""

from __future__ import annotations

import logging
import math

from quart import Response
from werkzeug.exceptions import HTTPException

from llmesh.core.ids import RequestId
from llmesh.errors import MeshError, RequestTimeout, TooLarge, ValidationFailed
from llmesh.gateway.schema import Problem, encode, problem

__all__ = ["PROBLEM_JSON", "answer_to"]

PROBLEM_JSON = "application/problem+json"

_log = logging.getLogger(__name__)


def answer_to(error: Exception, request_id: RequestId) -> Response:
    """The response that tells a failure."""
    match error:
        case MeshError():
            return _respond(problem(error, error.http_status, request_id))
        case HTTPException(code=int(status)):
            return _http_fault(error, status, request_id)
        case _:
            _log.error("A request failed through a fault of this node: %s", request_id, exc_info=error)
            return _respond(_bug(request_id))


def _http_fault(error: HTTPException, status: int, request_id: RequestId) -> Response:
    response = _respond(problem(_in_our_words(error, status), status, request_id))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _in_our_words(error: HTTPException, status: int) -> MeshError:
    match status:
        case 404:
            return ValidationFailed("There is nothing at this path; see /docs for what there is.")
        case 405:
            return ValidationFailed("This path does not take this method; Allow says which it takes.")
        case 408:
            return RequestTimeout("The body did not arrive in time.")
        case 413:
            return TooLarge("The body is larger than this node takes.")
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


def _respond(told: Problem) -> Response:
    response = Response(encode(told), told.status, content_type=PROBLEM_JSON)
    if isinstance(told.retry_after, float | int):
        response.headers["Retry-After"] = str(max(1, math.ceil(told.retry_after)))
    return response
