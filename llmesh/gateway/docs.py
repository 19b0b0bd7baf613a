"""/openapi.json and /docs: the interface as a document for programs and as a page for people.

The page is plain HTML written once at the start: no script, nothing fetched from elsewhere, so a
strict Content-Security-Policy holds.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import msgspec
from quart import Response

from llmesh.errors import ERRORS
from llmesh.gateway.callers import Scope
from llmesh.gateway.event_schema import EVENT_BODIES
from llmesh.gateway.openapi import Route, document
from llmesh.gateway.request import Request
from llmesh.gateway.schema import encode
from llmesh.gateway.websocket.frames import CLIENT_FRAMES, NODE_FRAMES

__all__ = ["docs_routes"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { overflow-wrap: anywhere; }
code { font: 0.9em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; }
tr { border-bottom: 1px solid #8884; }
h2 { margin-top: 2.5rem; }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HTML = "text/html; charset=utf-8"


def docs_routes(api: Sequence[Route]) -> tuple[Route, Route]:
    """The two routes that describe the others."""
    told = document(api)
    openapi, page = encode(told), _page(told).encode()
    return (
        Route(
            "GET",
            "/openapi.json",
            Scope.OPEN,
            partial(_get_document, openapi),
            "This interface, for programs.",
        ),
        Route("GET", "/docs", Scope.OPEN, partial(_get_page, page), "This interface, for people."),
    )


async def _get_document(text: bytes, request: Request) -> Response:
    return Response(text, content_type="application/json")


async def _get_page(text: bytes, request: Request) -> Response:
    response = Response(text, content_type=_HTML)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def _page(told: dict[str, Any]) -> str:
    shapes = told["components"]["schemas"]
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>LLMESH node</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style><h1>LLMESH node</h1>",
            '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
            '<p>To try it: <a href="/">the page</a>.</p>',
            *_contents(told["paths"]),
            *_operations(told["paths"]),
            *(part for name, shape in shapes.items() for part in _shape(name, shape)),
            *_frames(shapes),
            *_errors(),
            "</html>",
        )
    )


def _contents(paths: dict[str, Any]) -> Iterator[str]:
    yield "<ul>"
    for path, methods in paths.items():
        for method, operation in methods.items():
            title = f"<code>{method.upper()} {escape(path)}</code>"
            summary = escape(operation["summary"])
            yield f'<li><a href="#{_anchor(method, path)}">{title}</a> {summary}</li>'
    yield '<li><a href="#websocket"><code>WebSocket /ws</code></a> Streams and events.</li>'
    yield '<li><a href="#errors">Errors</a></li></ul>'


def _anchor(method: str, path: str) -> str:
    return f"{method}{re.sub(r'[^a-z0-9]+', '-', path.lower())}"


def _operations(paths: dict[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield f'<h2 id="{_anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></h2>'
            yield f"<p>{escape(operation['summary'])}</p>"
            for parameter in operation.get("parameters", ()):
                yield f"<p><code>{_placed(parameter)}</code> {_words(parameter['schema'])}</p>"
            if body := operation.get("requestBody"):
                for media, content in body["content"].items():
                    yield f"<p>Takes <code>{media}</code>: {_words(content['schema'])}.</p>"
            yield _table(
                (status, f"{escape(answer['description'])} {_words(_schema(answer))}")
                for status, answer in operation["responses"].items()
            )


def _placed(parameter: dict[str, Any]) -> str:
    name = parameter["name"]
    return {"path": f"{{{name}}}", "query": f"?{name}=", "header": f"{name}:"}[parameter["in"]]


def _shape(name: str, shape: dict[str, Any]) -> Iterator[str]:
    required = shape.get("required", ())
    yield f'<h2 id="{name}">{name}</h2><p>{escape(shape.get("description", ""))}</p>'
    yield _table(
        (f"<code>{field}</code>{'' if field in required else ' (optional)'}", _words(schema))
        for field, schema in shape.get("properties", {}).items()
    )


def _frames(told: Mapping[str, Any]) -> Iterator[str]:
    """The frames of the WebSocket and the events that one of them carries, with shapes not `told` yet."""
    _, shapes = msgspec.json.schema_components((*CLIENT_FRAMES, *NODE_FRAMES, *EVENT_BODIES.values()))
    yield '<h2 id="websocket"><code>WebSocket /ws</code></h2>'
    yield "<p>One JSON object a frame, told apart by its <code>type</code>.</p>"
    for title, frames in (("A client sends", CLIENT_FRAMES), ("The node sends", NODE_FRAMES)):
        yield f"<p>{title}: {', '.join(_linked(frame) for frame in frames)}.</p>"
    yield _table((f"<code>{name}</code>", _linked(body)) for name, body in EVENT_BODIES.items())
    for name, shape in shapes.items():
        if name not in told:
            yield from _shape(name, shape)


def _linked(shape: type[msgspec.Struct]) -> str:
    kind = shape.__struct_config__.tag or shape.__name__
    return f'<a href="#{shape.__name__}">{kind}</a>'


def _errors() -> Iterator[str]:
    yield '<h2 id="errors">Errors</h2>'
    yield "<p>An error is a Problem, sent as <code>application/problem+json</code>."
    yield " Under <code>/v1</code> and <code>/v2</code> it has the shape of that protocol.</p>"
    yield _table(
        (f'<a id="{e.name}"></a>{e.code}', f"{e.name} (HTTP {e.http_status})", escape(e.next_step))
        for e in ERRORS.values()
    )


def _schema(answer: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(answer["content"].values()))
    schema: dict[str, Any] = first["schema"]
    return schema


def _words(schema: dict[str, Any]) -> str:
    """A schema in a few words: a link to its shape, or its type and bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        kinds = " or ".join(_words(option) for option in schema["anyOf"])
    else:
        kind = schema.get("type", "any value")
        kinds = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    if "items" in schema:
        kinds += f" of {_words(schema['items'])}"
    default = f", {schema['default']} if left out" if schema.get("default") not in (None, "") else ""
    return f"{kinds}{escape(default)}. {escape(schema.get('description', ''))}".strip()


def _table(rows: Iterable[Sequence[str]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
