"""Rate limits on a clock of the test's own: exact, per name, and gone when the window has passed."""

from __future__ import annotations

import json
import time

import pytest
import trio
from quart_trio import QuartTrio

from llmesh.errors import RateLimited, TooLarge, ValidationFailed
from llmesh.gateway import limits as module
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.callers import Counted
from llmesh.gateway.gate import Gate
from llmesh.gateway.limits import Limits, OverLimit
from llmesh.gateway.rates import NO_RATES, Rate, Rates, read_rates

BODY = {"model": "m", "input": "x"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def app(router, node) -> QuartTrio:
    return create_app(router, None, node, GatewaySettings(Gate(limits=Limits(Rates()))))


def test_a_window_moves(clock: Clock) -> None:
    limits = Limits(Rates(inference=Rate(3, 60)))
    for _ in range(3):
        limits.count(Counted.INFERENCE, "a")
        clock.now += 10
    with pytest.raises(OverLimit) as refused:
        limits.count(Counted.INFERENCE, "a")
    assert refused.value.retry_after == pytest.approx(30)
    limits.count(Counted.INFERENCE, "b")
    limits.count(Counted.API, "a")
    clock.now += 30.5
    limits.count(Counted.INFERENCE, "a")
    with pytest.raises(OverLimit):
        limits.count(Counted.INFERENCE, "a")


def test_a_cost_is_counted_whole_or_not_at_all(clock: Clock) -> None:
    limits = Limits(Rates(deploy=Rate(10, 3600)))
    limits.count(Counted.DEPLOY, "node", 8)
    with pytest.raises(RateLimited):
        limits.count(Counted.DEPLOY, "node", 3)
    limits.count(Counted.DEPLOY, "node", 2)


def test_what_no_window_could_take_is_not_to_be_tried_again(clock: Clock) -> None:
    limits = Limits(Rates(inference=Rate(3, 60)))
    with pytest.raises(TooLarge, match="4 at once"):
        limits.count(Counted.INFERENCE, "a", 4)
    limits.count(Counted.INFERENCE, "a", 3)


def test_names_that_went_quiet_are_dropped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_AT", 8)
    limits = Limits(Rates(inference=Rate(3, 60)))
    for number in range(100):
        limits.count(Counted.INFERENCE, str(number))
        clock.now += 61
        limits._storage._MemoryStorage__expire_events()  # what its timer does
    assert len(limits._storage.events) <= 16


def test_off_counts_nothing() -> None:
    limits = Limits(NO_RATES)
    for _ in range(2000):
        limits.count(Counted.API, "a")


async def test_of_two_hundred_at_once_exactly_one_hundred_pass(app: QuartTrio, clock: Clock) -> None:
    client, seen = app.test_client(), []

    async def ask() -> None:
        answer = await client.post("/api/v1/inference", json=BODY)
        seen.append(answer.status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(ask)
    assert (seen.count(200), seen.count(429)) == (100, 100)
    answer = await client.post("/api/v1/inference", json=BODY)
    assert answer.headers["Retry-After"] == "60"
    assert answer.headers["RateLimit-Policy"] == '"inference";q=100;w=60'
    assert answer.headers["RateLimit"] == '"inference";r=0;t=60'
    assert json.loads(await answer.get_data())["code"] == RateLimited.code
    clock.now += 60.5
    assert (await client.post("/api/v1/inference", json=BODY)).status_code == 200


async def test_calls_are_counted_but_health_and_docs_are_not(router, node, clock: Clock) -> None:
    gate = Gate(limits=Limits(Rates(api=Rate(20, 3600))))
    client = create_app(router, None, node, GatewaySettings(gate)).test_client()
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        for _ in range(21):
            assert (await client.get(path)).status_code == 200
    codes = [(await client.get("/api/v1/status")).status_code for _ in range(21)]
    assert codes == [200] * 20 + [429]
    assert (await client.get("/healthz")).status_code == 200


async def test_a_bad_request_is_no_inference(app: QuartTrio, clock: Clock) -> None:
    client = app.test_client()
    for _ in range(150):
        assert (await client.post("/api/v1/inference", json={"model": ""})).status_code == 422
    assert (await client.post("/api/v1/inference", json=BODY)).status_code == 200


async def test_each_row_of_a_batch_is_one_and_so_is_each_text(router, catalogue, node, clock: Clock) -> None:
    gate = Gate(limits=Limits(Rates(inference=Rate(3, 60))))
    app = create_app(router, catalogue, node, GatewaySettings(gate), batch_routes(router))
    client = app.test_client()
    answer = await client.post("/api/v1/inference/batch", json={"requests": [BODY] * 5})
    rows = json.loads(await answer.get_data())["results"]
    assert [row.get("error", {}).get("code") for row in rows] == [None] * 3 + [RateLimited.code] * 2
    clock.now += 61
    texts = {"model": "m", "input": ["x"] * 4}
    assert (await client.post("/v1/embeddings", json=texts)).status_code == 413
    stream = {"model": "m", "prompt": "x", "stream": True}
    codes = [(await client.post("/v1/completions", json=stream)).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    texts = {"model": "m", "input": ["x"] * 3}
    assert (await client.post("/v1/embeddings", json=texts)).status_code == 429


def test_rates_are_read() -> None:
    assert read_rates("on") == Rates() == Rates(Rate(100, 60), Rate(10, 3600), Rate(1000, 3600))
    assert read_rates("off") == NO_RATES
    assert read_rates("inference=5/second, api=off") == Rates(Rate(5, 1), Rate(10, 3600), None)
    assert str(Rate(100, 60)) == "100/minute"


@pytest.mark.parametrize(
    "text", ["", "no", "inference", "chat=1/hour", "api=0/hour", "api=1/week", "api=-1/day"]
)
def test_bad_rates_are_refused(text: str) -> None:
    with pytest.raises(ValidationFailed):
        read_rates(text)
