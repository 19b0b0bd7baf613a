"""The JSON shapes of webhooks: what is registered, what is delivered, what became of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from llmesh.core.webhook import HookEvent
from llmesh.gateway.schema import Mesh, encode, mesh
from llmesh.journal.outbox import Intent
from llmesh.journal.webhooks import Webhook
from llmesh.mesh.events import InferenceEnded, ModelDeployed

__all__ = [
    "DeliveriesBody",
    "DeliveriesQuery",
    "DeliveryBody",
    "PingBody",
    "RemovedWebhookBody",
    "SecretBody",
    "WebhookBody",
    "WebhooksBody",
    "decode_secret",
    "decode_webhook",
    "event_body",
    "iso",
]

MAX_DELIVERIES = 500
_Secret = Annotated[
    str,
    Meta(
        min_length=8, max_length=400,
        description="Signs each delivery (Standard Webhooks): base64 after `whsec_`, else its UTF-8 bytes.",
    ),
]  # fmt: skip
_Event = Literal["inference_complete", "model_deployed"]


class WebhookBody(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Whom to tell of what.  `id` and `created` are the node's; a secret is shown only when it is new."""

    url: Annotated[str, Meta(min_length=1, max_length=2048, description="https://, on the public internet.")]
    events: Annotated[list[_Event], Meta(min_length=1, max_length=8)]
    secret: _Secret | UnsetType = UNSET
    id: str | UnsetType = UNSET
    created: str | UnsetType = UNSET

    @classmethod
    def of(cls, hook: Webhook, secret: str | UnsetType = UNSET) -> Self:
        """What is told of a webhook."""
        events: Any = sorted(hook.events)
        return cls(hook.url, events, secret, hook.id, iso(hook.created))


class WebhooksBody(Struct):
    """All webhooks."""

    webhooks: list[WebhookBody]


class SecretBody(Struct, forbid_unknown_fields=True):
    """A new secret; without one the node makes it.  The old one signs too for a day."""

    secret: _Secret | UnsetType = UNSET


class RemovedWebhookBody(Struct):
    """The webhook that is gone."""

    id: str


class PingBody(Struct):
    """Whether a test delivery arrived; `error` says why not."""

    delivered: bool
    error: str = ""


class DeliveryBody(Struct):
    """One event on its way to one webhook."""

    id: Annotated[str, Meta(description="The delivery's webhook-id, the same in every attempt.")]
    type: str
    state: Literal["waiting", "done", "dead"]
    attempts: int
    created: str
    next_attempt: str | None
    last_error: str

    @classmethod
    def of(cls, intent: Intent) -> Self:
        """What is told of an intent."""
        waits = intent.state.value == "waiting"
        return cls(
            id=intent.id,
            type=str(msgspec.json.decode(intent.body)["type"]),
            state=intent.state.value,
            attempts=intent.attempts,
            created=iso(intent.created),
            next_attempt=iso(intent.next_time) if waits else None,
            last_error=intent.last_error,
        )


class DeliveriesBody(Struct):
    """Deliveries of one webhook, the latest first."""

    deliveries: list[DeliveryBody]


class DeliveriesQuery(Struct, forbid_unknown_fields=True):
    """Which deliveries are wanted; `dead` is the list of dead letters."""

    state: Literal["waiting", "done", "dead"] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_DELIVERIES)] = 100


class _InferenceData(Struct):
    """An inference of this node's callers, or one that it served to a peer."""

    request_id: str
    served: str
    model: str
    model_id: str | None
    provider: str | None
    fee: Mesh
    latency_ms: float


class _ModelData(Struct):
    """A model that this node serves from now on, or on new terms."""

    model_id: str
    name: str
    version: str
    task: str
    fee: Mesh


class _EventBody(Struct):
    """What is posted."""

    type: str
    timestamp: str
    data: _InferenceData | _ModelData | dict[str, str]


def event_body(event: InferenceEnded | ModelDeployed | None, now: float) -> tuple[HookEvent, bytes]:
    """What is posted for an event, of None for a ping."""
    if event is None:
        return HookEvent.PING, encode(_EventBody(HookEvent.PING, iso(now), {}))
    if isinstance(event, ModelDeployed):
        offer = event.offer
        model = _ModelData(offer.model_id, offer.card.name, offer.card.version, offer.task, mesh(offer.fee))
        return HookEvent.MODEL_DEPLOYED, encode(_EventBody(HookEvent.MODEL_DEPLOYED, iso(now), model))
    done = _InferenceData(
        event.request_id, event.served.value, event.model, event.model_id, event.provider,
        mesh(event.fee), round(event.latency_ms, 3),
    )  # fmt: skip
    return HookEvent.INFERENCE_COMPLETE, encode(_EventBody(HookEvent.INFERENCE_COMPLETE, iso(now), done))


def iso(seconds: float) -> str:
    """A time as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


decode_webhook = msgspec.json.Decoder(WebhookBody).decode
decode_secret = msgspec.json.Decoder(SecretBody).decode
