"""Deliveries verify with the official library of Standard Webhooks; waits grow and stay bounded."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from llmesh.core.webhook import LONGEST_WAIT, headers, secret_key, wait_before, waited
from llmesh.errors import ValidationFailed

NOW = int(datetime.now(UTC).timestamp())
BODY = b'{"type":"ping"}'


@given(st.binary(min_size=8, max_size=64))
def test_a_binary_secret_verifies(key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    assert Webhook(secret).verify(BODY, headers("msg_1", NOW, BODY, [secret])) == {"type": "ping"}


@given(st.text(min_size=8, max_size=40).filter(lambda text: not text.startswith("whsec_")))
def test_any_other_secret_is_its_bytes(secret: str) -> None:
    try:
        key = secret.encode()
    except UnicodeEncodeError:
        return
    if len(key) > 256:
        return
    official = Webhook(base64.b64encode(key).decode())
    assert official.verify(BODY, headers("msg_1", NOW, BODY, [secret])) == {"type": "ping"}


def test_both_live_secrets_sign() -> None:
    sent = headers("msg_1", NOW, BODY, ["webhook_secret", "another_secret"])
    for secret in ("webhook_secret", "another_secret"):
        Webhook(base64.b64encode(secret.encode()).decode()).verify(BODY, sent)


@pytest.mark.parametrize("secret", ["", "short", "whsec_", "whsec_!!!!", "whsec_YQ==", "x" * 300])
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValidationFailed):
        secret_key(secret)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_and_stay_bounded(attempt: int, jitter: float) -> None:
    assert 5 <= wait_before(attempt, jitter) <= LONGEST_WAIT * 1.5
    assert wait_before(attempt, 0) <= wait_before(attempt + 1, 0)
    assert waited(attempt) >= wait_before(attempt, 0)


def test_a_day_holds_about_a_dozen_tries() -> None:
    assert 8 < next(tries for tries in range(1, 100) if waited(tries) > 86_400) < 16
