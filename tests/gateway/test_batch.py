"""Batches: in order, each row alone, and never more at once than is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio

from llmesh.core.ids import RequestId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.core.reference import ModelRef
from llmesh.errors import ModelNotFound, NodeBusy, TooLarge
from llmesh.gateway import rows as module
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.rows import AT_ONCE, infer_all

from .conftest import FakeCatalogue, FakeNode, FakeRouter, label

URL = "/api/v1/inference/batch"


@pytest.fixture
def app(router: FakeRouter) -> QuartTrio:
    settings = GatewaySettings(max_body=100_000, body_timeout=5)
    return create_app(router, FakeCatalogue(), FakeNode(), settings, batch_routes(router))


async def post(client, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    answer = await client.post(URL, json=body, headers=headers)
    return answer.status_code, json.loads(await answer.get_data())


async def test_one_failure_does_not_spoil_the_rest(client, router) -> None:
    async def answer(request: InferenceRequest) -> Result:
        if request.model.name == "busy":
            raise NodeBusy("No place is free.", retry_after=2)
        await trio.sleep(0 if request.model.name == "quick" else 0.01)
        return await label(request)

    router.answer = answer
    rows = [
        {"model": "slow", "input": "0"},
        {"model": "busy", "input": "1"},
        {"model": "quick", "input": "2"},
        {"model": "quick"},
        "no row at all",
        {"model": "no/../:way", "input": "x"},
        {"model": "quick", "input": "6", "dry_run": True},
        {"model": "quick", "input": "7", "max_fee": "0.5", "sort": "latency"},
    ]
    status, body = await post(client, {"requests": rows})
    assert status == 200
    results = body["results"]
    assert [results[n]["result"]["output"]["echo"] for n in (0, 2, 7)] == ["0", "2", "7"]
    codes = [results[n]["error"]["code"] for n in (1, 3, 4, 5)]
    assert codes == [2003, 1004, 1004, 1004]
    assert results[1]["error"]["retry_after"] == 2
    assert "`input`" in results[3]["error"]["detail"]
    assert results[6]["result"]["providers"]
    ids = [row.get("result", row.get("error"))["request_id"] for row in results]
    assert len({body["request_id"], *ids}) == len(rows) + 1


async def test_a_bounded_number_runs_at_once(client, router, autojump_clock) -> None:
    running = most = 0

    async def answer(request: InferenceRequest) -> Result:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return await label(request)

    router.answer = answer
    started = trio.current_time()
    status, body = await post(client, {"requests": [{"model": "m", "input": str(n)} for n in range(200)]})
    assert [row["result"]["output"]["echo"] for row in body["results"]] == [str(n) for n in range(200)]
    assert (status, most, running) == (200, AT_ONCE, 0)
    assert trio.current_time() - started == pytest.approx(-(-200 // AT_ONCE))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"requests": [{"model": "m", "input": "x"}] * 1001}, "1000"),
        ({"requests": [1] * 10_000}, "1000"),
        ({"requests": []}, "requests"),
        ({"requests": {}}, "requests"),
        ({}, "requests"),
        ([], "object"),
        ({"requests": [1], "more": 1}, "`more`"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_batches_run_nothing(client, router, body: Any, named: str) -> None:
    status, problem = await post(client, body)
    assert (status, problem["code"], router.requests) == (422, 1004, [])
    assert named in problem["detail"]


async def test_a_batch_over_the_limit_of_bodies_is_too_large(client, router) -> None:
    status, problem = await post(client, {"requests": [{"model": "m", "input": "x" * 60_000}] * 2})
    assert (status, problem["code"], router.requests) == (413, 4004, [])


async def test_a_batch_sent_again_is_run_once(client, router) -> None:
    rows = {"requests": [{"model": "m", "input": "a"}, {"model": "m", "input": "b"}]}
    first = await post(client, rows, **{"Idempotency-Key": "k"})
    assert await post(client, rows, **{"Idempotency-Key": "k"}) == first
    assert len(router.requests) == 2


async def test_rows_beyond_what_all_answers_may_take_are_not_run(client, router, monkeypatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr(module, "MOST_BYTES", 2500)
    rows = [{"model": "m", "input": "x" * 1000}] * 6
    _, body = await post(client, {"requests": rows})
    assert [row.get("error", {}).get("code") for row in body["results"]] == [None] * 2 + [4004] * 4
    assert len(router.requests) == 2


async def test_rows_that_are_one_answer_fail_where_it_would_be_too_large(router, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 2500)
    model = ModelRef.parse("m")
    asked = [InferenceRequest(RequestId(f"{n:032x}"), model, {"text": "x" * 1000}, 9) for n in range(100)]
    assert len(await infer_all(router, asked[:2], None)) == 2
    with pytest.raises(TooLarge, match="fewer rows"):
        await infer_all(router, asked, None)
    assert len(router.requests) < len(asked)


async def test_a_client_that_goes_cancels_every_row(client, router) -> None:
    async def forever(request: InferenceRequest) -> Result:
        await trio.sleep_forever()
        raise ModelNotFound("never")

    router.answer = forever
    rows = {"requests": [{"model": "m", "input": "x"}] * 3}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post, client, rows)
        await router.entered.wait()
        nursery.cancel_scope.cancel()
    assert router.cancelled.is_set()
