"""Webhooks as data: which events there are, how a delivery is signed, when it is tried again.

Signatures and headers follow Standard Webhooks 1.0 (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from enum import StrEnum

from llmesh.errors import ValidationFailed

__all__ = ["LONGEST_WAIT", "PREFIX", "HookEvent", "headers", "secret_key", "wait_before", "waited"]

PREFIX = "whsec_"
"""What the text of a binary secret begins with."""
LEAST_SECRET, MOST_SECRET = 8, 256
LONGEST_WAIT = 4 * 3600.0
_FIRST_WAIT = 5.0
_FACTOR = 4.0


class HookEvent(StrEnum):
    """What a webhook may be told of; PING only on request."""

    INFERENCE_COMPLETE = "inference_complete"
    MODEL_DEPLOYED = "model_deployed"
    PING = "ping"


def secret_key(secret: str) -> bytes:
    """The key of a secret: what starts with `whsec_` is base64, any other is its UTF-8 bytes.

    Raises ValidationFailed for one that is too short, too long or not base64.
    """
    if secret.startswith(PREFIX):
        key = _decoded(secret.removeprefix(PREFIX))
    else:
        key = secret.encode("utf-8", "surrogatepass")
    if not LEAST_SECRET <= len(key) <= MOST_SECRET:
        raise ValidationFailed(f"A webhook's secret takes {LEAST_SECRET} to {MOST_SECRET} bytes.")
    return key


def headers(id: str, at: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """What goes with a delivery sent at `at` (seconds since 1970), signed under each live secret."""
    content = f"{id}.{at}.".encode() + body
    signatures = (hmac.digest(secret_key(secret), content, hashlib.sha256) for secret in secrets)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures),
    }


def wait_before(attempt: int, jitter: float) -> float:
    """Seconds before the next try after so many; `jitter` in [0, 1) spreads it over a half more."""
    return min(LONGEST_WAIT, _FIRST_WAIT * _FACTOR ** min(attempt - 1, 16)) * (1 + jitter / 2)


def waited(attempts: int) -> float:
    """Seconds that so many failed tries have taken at least, by their waits."""
    return sum(wait_before(attempt, 0.0) for attempt in range(1, attempts + 1))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValidationFailed(f"What follows {PREFIX} in a webhook's secret is not base64.") from None
