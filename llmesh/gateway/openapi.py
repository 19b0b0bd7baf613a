"""The OpenAPI 3.1 document, written from the same table of routes that the app serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from quart import Response

from llmesh.errors import MeshError, TooLarge, Unauthorized, ValidationFailed
from llmesh.gateway.problems import PROBLEM_JSON
from llmesh.gateway.request import Request
from llmesh.gateway.schema import Malformed, Problem

__all__ = ["Route", "document"]

_API_VERSION = "1.0.0"
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path: what it does, what it takes, what it answers, how it may fail.

    Every route may also answer 401 (foreign host or page); one with a query 422; one with a body
    400, 408, 413, 415 and 422.  A route without an `answer` in JSON stays out of the document.
    """

    method: Literal["GET", "POST"]
    path: str
    view: Callable[[Request], Awaitable[Response]]
    summary: str
    answer: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    errors: tuple[type[MeshError], ...] = ()

    def failures(self) -> dict[int, list[str]]:
        """Names of errors by HTTP status."""
        found: dict[int, list[str]] = {}
        errors: tuple[type[MeshError], ...] = (Unauthorized, *self.errors, *self._input_errors())
        for error in errors:
            found.setdefault(error.http_status, []).append(error.name)
        if self.body:
            for status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.UNSUPPORTED_MEDIA_TYPE):
                found[status.value] = [status.phrase]
        return found

    def _input_errors(self) -> tuple[type[MeshError], ...]:
        if self.body:
            return (Malformed, ValidationFailed, TooLarge)
        return (ValidationFailed,) if self.query else ()


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    routes = [route for route in routes if route.answer]
    shapes: set[type[msgspec.Struct]] = {
        shape for r in routes for shape in (r.answer, r.body, r.query) if shape
    } | {Problem}
    ordered = sorted(shapes, key=lambda shape: shape.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    queries = {route.query.__name__ for route in routes if route.query}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLMESH node", "version": _API_VERSION, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": {name: s for name, s in schemas.items() if name not in queries}},
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    failures = {
        str(status): {"description": ", ".join(names), "content": {PROBLEM_JSON: _ref(Problem)}}
        for status, names in sorted(route.failures().items())
    }
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done.", "content": _json(route.answer)},
            **failures,
        },
    }
    if route.query:
        operation["parameters"] = list(_parameters(schemas[route.query.__name__]))
    if route.body:
        operation["requestBody"] = {"required": True, "content": _json(route.body)}
    return operation


def _operation_id(route: Route) -> str:
    return f"{route.method.lower()}_{route.path.rsplit('/', 1)[-1]}"


def _parameters(query: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name, schema in query["properties"].items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _json(shape: type[msgspec.Struct] | None) -> dict[str, Any]:
    return {"application/json": _ref(shape)} if shape else {}


def _ref(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(name=shape.__name__)}}
