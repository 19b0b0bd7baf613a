"""The OpenAPI 3.1 document, written from the same table of routes that the app serves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import msgspec
from quart import Response

from llmesh.errors import MeshError, RateLimited, TooLarge, Unauthorized, ValidationFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.live import EVENT_STREAM
from llmesh.gateway.problems import PROBLEM_JSON
from llmesh.gateway.request import Request
from llmesh.gateway.schema import Malformed, Problem

__all__ = ["Route", "document"]

_Schema: TypeAlias = dict[str, Any]
_EVENTS: _Schema = {"description": "Server-sent events whose data are JSON."}
_API_VERSION = "1.0.0"
_KEY = "key"
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path: whom it is for, what it does, takes and answers, how it may fail.

    `path` has its variables in braces, each with a schema in `variables`.  It answers one of the
    shapes of `answers` under `status`.  Every route may also answer 401 (foreign host or page, no key
    of that scope), and 429 unless it is open to all; one with a query or variables 422; one with a body
    (in JSON, or `uploads`: schemas by media type) 400, 408, 413, 415 and 422.  One that `streams` may
    answer in server-sent events instead; `failure` is the shape of its errors, and what is not a Problem
    knows no 422.  A route that neither answers in JSON nor streams stays out of the document.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    scope: Scope
    view: Callable[[Request], Awaitable[Response]]
    summary: str
    answers: tuple[type[msgspec.Struct], ...] = ()
    status: int = 200
    body: type[msgspec.Struct] | None = None
    uploads: Mapping[str, _Schema] = field(default_factory=dict)
    query: type[msgspec.Struct] | None = None
    variables: Mapping[str, _Schema] = field(default_factory=dict)
    headers: Mapping[str, _Schema] = field(default_factory=dict)
    errors: tuple[type[MeshError], ...] = ()
    streams: bool = False
    failure: type[msgspec.Struct] = Problem

    @property
    def rule(self) -> str:
        """The path as Quart writes it."""
        return self.path.replace("{", "<").replace("}", ">")

    def failures(self) -> dict[int, list[str]]:
        """Names of errors by HTTP status."""
        found: dict[int, list[str]] = {}
        errors: tuple[type[MeshError], ...] = (
            *((Unauthorized,) if self.scope is Scope.OPEN else (Unauthorized, RateLimited)),
            *self.errors,
            *self._input_errors(),
        )
        for error in errors:
            status = 400 if self.failure is not Problem and error.http_status == 422 else error.http_status
            if error.name not in found.setdefault(status, []):
                found[status].append(error.name)
        if self.body:
            for fault in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.UNSUPPORTED_MEDIA_TYPE):
                found[fault.value] = [fault.phrase]
        return found

    def _input_errors(self) -> tuple[type[MeshError], ...]:
        if self.body:
            return (Malformed, ValidationFailed, TooLarge)
        return (ValidationFailed,) if self.query or self.variables or self.headers else ()


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    routes = [route for route in routes if route.answers or route.streams]
    shapes: set[type[msgspec.Struct]] = {
        shape for r in routes for shape in (*r.answers, r.body, r.query, r.failure) if shape
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
        "components": {
            "schemas": {name: s for name, s in schemas.items() if name not in queries},
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer", "bearerFormat": "llmesh_..."}},
        },
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = PROBLEM_JSON if route.failure is Problem else "application/json"
    done = _json(route.answers) | ({EVENT_STREAM: {"schema": _EVENTS}} if route.streams else {})
    failures = {
        str(status): {"description": ", ".join(names), "content": {kind: _ref(route.failure)}}
        for status, names in sorted(route.failures().items())
    }
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "responses": {
            str(route.status): {"description": "Done.", "content": done},
            **failures,
        },
    }
    if route.scope is not Scope.OPEN:
        operation["security"] = [{}, {_KEY: [str(route.scope)]}]  # on loopback it may need none
    if parameters := list(_parameters(route, schemas)):
        operation["parameters"] = parameters
    if route.body:
        uploads = {media: {"schema": schema} for media, schema in route.uploads.items()}
        operation["requestBody"] = {"required": True, "content": _json((route.body,)) | uploads}
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.path.removeprefix("/api/v1"))
    return "_".join((route.method.lower(), *words))


def _parameters(route: Route, schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, schema in route.variables.items():
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name, schema in route.headers.items():
        yield {"name": name, "in": "header", "required": False, "schema": schema}
    if route.query:
        shape = schemas[route.query.__name__]
        for name, schema in shape["properties"].items():
            required = name in shape.get("required", ())
            yield {"name": name, "in": "query", "required": required, "schema": schema}


def _json(shapes: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    if not shapes:
        return {}
    if len(shapes) == 1:
        return {"application/json": _ref(shapes[0])}
    return {"application/json": {"schema": {"anyOf": [_ref(shape)["schema"] for shape in shapes]}}}


def _ref(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(name=shape.__name__)}}
