"""The node's page: files read once at the start, and a policy under which nothing else can run.

The page's client is sdk/js itself, which lies here by links; a wheel has copies.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from quart import Response

from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request

__all__ = ["POLICY", "page_routes"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_FILES = Path(__file__).parent / "files"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> tuple[Route, ...]:
    """A route for each file of the page; / is the page itself."""
    return tuple(_route(path) for path in sorted(_FILES.rglob("*")) if path.is_file())


def _route(path: Path) -> Route:
    name = path.relative_to(_FILES).as_posix()
    view = partial(_get_file, path.read_bytes(), _KINDS[path.suffix])
    where = "/" if name == "index.html" else f"/page/{name}"
    return Route("GET", where, Scope.OPEN, view, "The page of this node, for people.")


async def _get_file(data: bytes, kind: str, request: Request) -> Response:
    tag = hashlib.blake2b(data, digest_size=16).hexdigest()
    response = Response(data, content_type=kind, headers=_HEADERS)
    response.set_etag(tag)
    await response.make_conditional(request)
    return response
