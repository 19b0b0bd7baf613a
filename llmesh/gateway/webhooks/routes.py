"""Webhooks over REST: register, look at, remove, test, give a new secret, see and repeat deliveries."""

from __future__ import annotations

import base64
import secrets
from functools import partial

from msgspec import UNSET, Struct, UnsetType
from quart import Response

from llmesh.core.webhook import PREFIX, secret_key
from llmesh.errors import Conflict, MeshError, NotFound, TransactionFailed
from llmesh.gateway.callers import Scope
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, keyed
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, decode_query, encode
from llmesh.gateway.webhooks.courier import KIND, Courier
from llmesh.gateway.webhooks.shapes import (
    DeliveriesBody,
    DeliveriesQuery,
    DeliveryBody,
    PingBody,
    RemovedWebhookBody,
    SecretBody,
    WebhookBody,
    WebhooksBody,
    decode_secret,
    decode_webhook,
)
from llmesh.journal.outbox import IntentState, ReviveIntent, find_intent, intents_of
from llmesh.journal.webhooks import AddWebhook, RemoveWebhook, RotateSecret, Webhook

__all__ = ["webhook_routes"]

OVERLAP = 86_400.0
"""Seconds that an old secret signs beside the new one."""
_ID = {"id": {"type": "string", "pattern": "^wh_[0-9a-f]{24}$", "description": "A webhook's id."}}
_DELIVERY = {"id": {"type": "string", "pattern": "^msg_[0-9a-f]{32}$", "description": "A delivery's id."}}


def webhook_routes(courier: Courier) -> tuple[Route, ...]:
    """All of them; every one needs the scope `webhooks`."""
    scope, path = Scope.WEBHOOKS, "/api/v1/webhooks"
    return (
        Route("POST", path, scope, keyed(partial(post_webhook, courier)), "Be told of events by a POST.",
              answers=(WebhookBody,), status=201, body=WebhookBody, headers=IDEMPOTENCY_KEY,
              errors=(Conflict, TransactionFailed)),
        Route("GET", path, scope, partial(get_webhooks, courier), "Who is told of what.",
              answers=(WebhooksBody,)),
        Route("GET", f"{path}/{{id}}", scope, partial(get_webhook, courier), "One webhook.",
              answers=(WebhookBody,), variables=_ID, errors=(NotFound,)),
        Route("DELETE", f"{path}/{{id}}", scope, partial(delete_webhook, courier), "Be told no more.",
              answers=(RemovedWebhookBody,), variables=_ID, errors=(NotFound, TransactionFailed)),
        Route("POST", f"{path}/{{id}}/ping", scope, partial(post_ping, courier), "Send a test event now.",
              answers=(PingBody,), variables=_ID, errors=(NotFound,)),
        Route("POST", f"{path}/{{id}}/secret", scope, keyed(partial(post_secret, courier)),
              "Give it a new secret; the old one signs too for a day.",
              answers=(WebhookBody,), body=SecretBody, variables=_ID, headers=IDEMPOTENCY_KEY,
              errors=(NotFound, Conflict, TransactionFailed)),
        Route("GET", f"{path}/{{id}}/deliveries", scope, partial(get_deliveries, courier),
              "What became of its events; state=dead lists what was given up.",
              answers=(DeliveriesBody,), query=DeliveriesQuery, variables=_ID, errors=(NotFound,)),
        Route("POST", "/api/v1/deliveries/{id}/replay", scope, keyed(partial(post_replay, courier)),
              "Send a dead delivery again.", answers=(DeliveryBody,), variables=_DELIVERY,
              headers=IDEMPOTENCY_KEY, errors=(NotFound, Conflict, TransactionFailed)),
    )  # fmt: skip


async def post_webhook(courier: Courier, request: Request) -> Response:
    """Register, once however often it is asked for with the same secret.

    Raises ValidationFailed for a URL that may not be called or a secret that is none.
    """
    body = decode(await request.json_bytes(), decode_webhook)
    secret = _secret(body.secret)
    await courier.callout.check(body.url)
    name, events = f"wh_{secrets.token_hex(12)}", frozenset(map(str, body.events))
    hook = Webhook(name, body.url, events, secret, courier.clock())
    await courier.change(AddWebhook(hook))
    hook = next((known for known in courier.hooks if known.is_like(hook)), hook)
    return _json(WebhookBody.of(hook, UNSET if body.secret is not UNSET else secret), 201)


async def get_webhooks(courier: Courier, request: Request) -> Response:
    """List them."""
    return _json(WebhooksBody([WebhookBody.of(hook) for hook in courier.hooks]))


async def get_webhook(courier: Courier, request: Request) -> Response:
    """Tell of one."""
    return _json(WebhookBody.of(_hook(courier, request)))


async def delete_webhook(courier: Courier, request: Request) -> Response:
    """Remove one with what waits for it."""
    hook = _hook(courier, request)
    await courier.change(RemoveWebhook(hook.id))
    return _json(RemovedWebhookBody(hook.id))


async def post_ping(courier: Courier, request: Request) -> Response:
    """Try it."""
    hook = _hook(courier, request)
    try:
        await courier.ping(hook)
    except MeshError as error:
        return _json(PingBody(False, error.message))
    return _json(PingBody(True))


async def post_secret(courier: Courier, request: Request) -> Response:
    """Change its secret."""
    hook = _hook(courier, request)
    body = decode(await request.json_bytes(), decode_secret)
    secret = _secret(body.secret)
    await courier.change(RotateSecret(hook.id, secret, courier.clock() + OVERLAP))
    return _json(WebhookBody.of(hook, UNSET if body.secret is not UNSET else secret))


async def get_deliveries(courier: Courier, request: Request) -> Response:
    """Its delivery log."""
    hook = _hook(courier, request)
    query = decode_query(request.query_string, DeliveriesQuery)
    state = IntentState(query.state) if query.state else None
    found = await courier.journal.read(intents_of, KIND, hook.id, query.limit, state)
    return _json(DeliveriesBody([DeliveryBody.of(intent) for intent in found]))


async def post_replay(courier: Courier, request: Request) -> Response:
    """Have a dead letter sent again, as the same delivery.  Raises Conflict for one that is not dead."""
    name = request.variable("id")
    found = await courier.journal.read(find_intent, name)
    if found is None or found.kind != KIND:
        raise NotFound(f"There is no delivery {name[:80]}.")
    await courier.change(ReviveIntent(name, courier.clock()))
    revived = await courier.journal.read(find_intent, name)
    return _json(DeliveryBody.of(revived or found))


def _hook(courier: Courier, request: Request) -> Webhook:
    name = request.variable("id")
    hook = courier.hook(name)
    if hook is None:
        raise NotFound(f"There is no webhook {name[:80]}.")
    return hook


def _secret(given: str | UnsetType) -> str:
    """The given secret, once it is known to be one, or a new one."""
    secret = given if isinstance(given, str) else PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    secret_key(secret)
    return secret


def _json(body: Struct, status: int = 200) -> Response:
    return Response(encode(body), status, content_type="application/json")
