"""The gateway's application: the table of routes, and the root under which every request runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TypeAlias, cast

from quart import Response, has_request_context, request
from quart_trio import QuartTrio

from llmesh.core.meter import Meter, Metric
from llmesh.core.trace import read_trace
from llmesh.errors import (
    Conflict,
    NodeBusy,
)
from llmesh.gateway.body import HELD, linger
from llmesh.gateway.callers import Scope
from llmesh.gateway.docs import docs_routes
from llmesh.gateway.faces import face_routes, tell_for
from llmesh.gateway.gate import Gate
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, keyed
from llmesh.gateway.inference import ROUTER_ERRORS, Router, post_inference
from llmesh.gateway.inference_schema import InferenceBody, PlanBody, ResultBody
from llmesh.gateway.live import Connection
from llmesh.gateway.models import Catalogue, get_models
from llmesh.gateway.openapi import Route
from llmesh.gateway.page.routes import page_routes
from llmesh.gateway.problems import answer_to
from llmesh.gateway.request import Request, new_request_id
from llmesh.gateway.schema import (
    HealthBody,
    ModelsBody,
    ModelsQuery,
    StatusBody,
)
from llmesh.gateway.server_sent import events_route, streaming
from llmesh.gateway.status import NodeView, get_health, get_readiness, get_status
from llmesh.gateway.websocket.route import Sockets, add_websocket
from llmesh.gateway.websocket.socket import Bounds
from llmesh.mesh.tracing import follow_trace, new_trace

__all__ = ["App", "GatewaySettings", "application", "create_app", "routes"]

App: TypeAlias = QuartTrio
"""What `gateway.server` serves."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Whom to serve and how much to take: `max_body` in bytes, `body_timeout` in seconds, WebSockets.

    Answers are counted by `meter`.
    """

    gate: Gate = field(default_factory=Gate)
    max_body: int = 16 * 1024 * 1024
    body_timeout: float = 20.0
    sockets: Bounds = field(default_factory=Bounds)
    meter: Meter = field(default_factory=Meter)


def create_app(
    router: Router,
    catalogue: Catalogue,
    node: NodeView,
    settings: GatewaySettings | None = None,
    more: Sequence[Route] = (),
) -> QuartTrio:
    """The ASGI application of one node, with `more` routes; serve it with `gateway.server`."""
    settings = settings or GatewaySettings()
    app = application(routes(router, catalogue, node, more), settings)
    add_websocket(app, Sockets(router, node.events, settings.gate, settings.sockets))
    return app


def application(table: Iterable[Route], settings: GatewaySettings) -> QuartTrio:
    """An ASGI application of those routes."""
    app = QuartTrio("llmesh.gateway", static_folder=None)
    app.request_class = Request
    app.asgi_http_class = Connection
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.config["BODY_TIMEOUT"] = settings.body_timeout
    app.url_map.merge_slashes = False
    scopes = {}
    for route in table:
        name = f"{route.method} {route.path}"
        scopes[name] = route.scope
        app.add_url_rule(
            route.rule,
            name,
            _endpoint(route.view),
            methods=[route.method],
            provide_automatic_options=False,
        )
    app.before_request(partial(_admit, settings.gate, scopes))
    app.register_error_handler(Exception, _fail)
    app.after_request(partial(_stamp, settings.meter))
    return app


def routes(
    router: Router, catalogue: Catalogue, node: NodeView, more: Sequence[Route] = ()
) -> tuple[Route, ...]:
    """Everything the gateway serves, told once for the app, the OpenAPI document and the page."""
    api = (
        Route(
            "POST", "/api/v1/inference", Scope.INFERENCE,
            streaming(router, keyed(partial(post_inference, router))),
            "Run one inference on whoever offers the model; its answer comes piece by piece to whoever"
            " accepts text/event-stream.",
            answers=(ResultBody, PlanBody), body=InferenceBody, headers=IDEMPOTENCY_KEY,
            errors=(*ROUTER_ERRORS, Conflict), streams=True,
        ),
        events_route(node.events),
        Route(
            "GET", "/api/v1/models", Scope.READ, partial(get_models, catalogue),
            "Search the models on offer.", answers=(ModelsBody,), query=ModelsQuery,
        ),
        Route("GET", "/api/v1/status", Scope.READ, partial(get_status, node),
              "Who this node is and how it stands.", answers=(StatusBody,)),
        Route("GET", "/healthz", Scope.OPEN, get_health, "Whether the node's process is alive.",
              answers=(HealthBody,)),
        Route("GET", "/readyz", Scope.OPEN, partial(get_readiness, node),
              "Whether the node can serve requests.", answers=(HealthBody,), errors=(NodeBusy,)),
        *face_routes(router, catalogue, node),
        *more,
    )  # fmt: skip
    return (*api, *docs_routes(api), *page_routes())


def _endpoint(view: Callable[[Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    async def endpoint(**_: str) -> Response:  # variables of the path; `Request.variable` has them
        return await view(_current())

    return endpoint


def _current() -> Request:
    return cast("Request", request._get_current_object())  # type: ignore[attr-defined]


async def _admit(gate: Gate, scopes: Mapping[str, Scope]) -> None:
    asked = _current()
    follow_trace(read_trace(asked.headers.get("traceparent", "")) or new_trace())
    asked.caller = gate.admit(asked, scopes.get(asked.endpoint or ""))
    asked.readmit = partial(gate.holder, asked)


async def _fail(error: Exception) -> Response:
    # A WebSocket that is refused, or that a fault of ours breaks, ends here too, outside any request.
    if not has_request_context():
        return answer_to(error, new_request_id())
    asked = _current()
    response = answer_to(error, asked.id, tell_for(asked.path))
    if response.status_code != HTTPStatus.REQUEST_TIMEOUT and _more_may_come(asked):
        linger(response, asked.body)
    return response


def _more_may_come(asked: Request) -> bool:
    if asked.body.whole:
        return False
    size = asked.content_length
    if size is None:  # with HTTP/1 it has a body only if it says so
        return "Transfer-Encoding" in asked.headers or not asked.http_version.startswith("1")
    return size > HELD


async def _stamp(meter: Meter, response: Response) -> Response:
    asked = _current()
    # A method that no route takes may be any word, of which the meter would keep each.
    method, route = (asked.method, asked.url_rule.rule) if asked.url_rule else ("none", "none")
    meter.count(Metric.HTTP_ANSWERS, method, route, str(response.status_code))
    response.headers["X-Request-Id"] = asked.id
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
