"""The routes as a user meets them: right answers, and a clear refusal for everything else."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio
from quart_trio.testing import TrioClient

from llmesh.core.amount import Amount
from llmesh.core.inference import InferenceRequest, Result
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import ERRORS, error_from_code
from llmesh.gateway.app import GatewaySettings, application
from llmesh.gateway.peers import peers_routes

from .conftest import OTHER, PROVIDER

JSON = {"Content-Type": "application/json"}
URL = "/api/v1/inference"


async def post(client: TrioClient, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post(URL, data=data, headers={**JSON, **headers})
    return answer.status_code, json.loads(await answer.get_data())


async def get(client: TrioClient, path: str) -> tuple[int, dict[str, Any]]:
    answer = await client.get(path)
    return answer.status_code, json.loads(await answer.get_data())


async def test_inference_answers_what_the_contract_says(client, router) -> None:
    status, body = await post(
        client, {"model": "sentiment-analyzer", "input": {"text": "这太棒了！"}, "timeout": 30}
    )
    assert status == 200
    (request,) = router.requests
    assert (str(request.model), dict(request.input), request.timeout) == (
        "sentiment-analyzer", {"text": "这太棒了！"}, 30.0
    )  # fmt: skip
    assert request.max_fee is None
    assert body == {
        "request_id": request.id,
        "model": "sentiment-analyzer",
        "model_id": "ab" * 32,
        "output": {"label": "positive", "score": 0.9876, "echo": "这太棒了！"},
        "fee": 0.1,
        "provider": "12D3KooW" + "A" * 44,
        "latency_ms": 1.235,
        "usage": {"input_tokens": 4, "output_tokens": 0, "compute_ms": 0.5},
        "attempts": 1,
        "skipped": [
            {"peer": "12D3KooW" + "C" * 44, "code": 2002, "reason": "It did not accept the request."}
        ],
        "receipt": None,  # the fake signs nothing
    }


async def test_wishes_reach_the_router(client, router) -> None:
    asked = {"model": "m", "input": "x", "sort": "throughput", "min_stake": "2.5"}
    peers = {"only": [PROVIDER], "ignore": [OTHER]}
    assert (await post(client, {**asked, "providers": peers}))[0] == 200
    assert (await post(client, {"model": "m", "input": "x"}))[0] == 200
    wished = Wishes(Sort.THROUGHPUT, Amount(2_500_000), frozenset({PROVIDER}), frozenset({OTHER}))
    assert router.wishes == [wished, Wishes()]


async def test_a_dry_run_tells_who_would_serve_and_runs_nothing(client, router) -> None:
    status, body = await post(client, {"model": "m", "input": "x", "dry_run": True, "sort": "latency"})
    assert (status, router.requests, router.wishes[0].sort) == (200, [], Sort.LATENCY)
    assert body.pop("request_id")
    assert body == {
        "model": "m",
        "model_id": "ab" * 32,
        "fee": 0.25,
        "providers": [{"provider": PROVIDER, "fee": 0.25, "stake": 1000}],
        "skipped": [{"peer": OTHER, "code": 1001, "reason": "It asks 3 MESH."}],
    }


async def test_a_bare_string_is_text(client, router) -> None:
    assert (await post(client, {"model": "m", "input": "hello"}))[0] == 200
    assert router.requests[0].input == {"text": "hello"}


@pytest.mark.parametrize("fee", [0.1, "0.1", "0.100000"])
async def test_max_fee_is_exact(client, router, fee: Any) -> None:
    assert (await post(client, {"model": "m", "input": "x", "max_fee": fee}))[0] == 200
    assert router.requests[0].max_fee == Amount(100_000)


async def test_the_answers_header_names_the_request(client, router) -> None:
    answer = await client.post(URL, json={"model": "m", "input": "x"})
    assert answer.headers["X-Request-Id"] == router.requests[0].id
    refusal = await client.get("/nowhere")
    assert json.loads(await refusal.get_data())["request_id"] == refusal.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["sentiment-analyzer", "gpt-mini", "sentiment-xl"]),
        ("?name=senti", ["sentiment-analyzer", "sentiment-xl"]),
        ("?name=senti&max_fee=0.1", ["sentiment-analyzer"]),
        ("?limit=2", ["sentiment-analyzer", "gpt-mini"]),
        ("?name=", ["sentiment-analyzer", "gpt-mini", "sentiment-xl"]),
        ("?name=%E6%83%85", []),
    ],
)
async def test_models_are_searched(client, query: str, names: list[str]) -> None:
    status, body = await get(client, f"/api/v1/models{query}")
    assert (status, [model["name"] for model in body["models"]]) == (200, names)


async def test_a_model_is_told_whole(client) -> None:
    _, body = await get(client, "/api/v1/models?limit=1")
    assert body["models"] == [
        {
            "name": "sentiment-analyzer",
            "version": "1.0.0",
            "model_id": "ab" * 32,
            "task": "text-classification",
            "fee": 0.1,
            "provider": "12D3KooW" + "A" * 44,
            "stake": 1000,
            "description": "Tells feelings.",
            "licence": "Apache-2.0",
            "variant": "model.onnx",
            "execution": "fp32-strict",
        }
    ]


async def test_status_has_the_contracts_six_fields_first(client) -> None:
    status, body = await get(client, "/api/v1/status")
    assert status == 200
    assert list(body)[:6] == ["node_id", "version", "peers", "models", "stake", "earnings"]
    assert (body["peers"], body["models"], body["stake"], body["earnings"]) == (42, 3, 5000, 123.45)
    assert (body["addresses"], body["reachable"], body["uptime"]) == (["/ip4/10.0.0.1/tcp/4001"], True, 12.5)
    assert (body["sandbox"], body["providers"]) == ("confined", ["cpu"])
    [transfer] = body["transfers"]
    assert (transfer["done"], transfer["total"], transfer["rate"]) == (10, 30, 5)
    assert transfer["sources"] == [body["node_id"]]
    [worker] = body["workers"]
    assert (worker["sandbox"], worker["provider"], worker["batch"]) == ("confined", "cpu", 8)
    assert (worker["model_id"], worker["resident"], worker["calls"]) == ("ab" * 32, 80_000_000, 2)


async def test_peers_are_told(node) -> None:
    client = application(peers_routes(node), GatewaySettings()).test_client()
    assert await get(client, "/api/v1/peers") == (
        200,
        {
            "peers": [
                {"peer_id": PROVIDER, "state": "connected", "addresses": [], "latency_ms": 12.346,
                 "models": 0, "stake": 0, "foreign": None},
                {"peer_id": OTHER, "state": "down", "addresses": ["/ip4/10.0.0.2/tcp/4001"],
                 "latency_ms": None, "models": 2, "stake": 7, "foreign": True},
            ]
        },
    )  # fmt: skip
    assert len((await get(client, "/api/v1/peers?limit=1"))[1]["peers"]) == 1
    assert (await get(client, "/api/v1/peers?limit=0"))[0] == 422


async def test_health(client, node) -> None:
    assert await get(client, "/healthz") == (200, {"status": "ok"})
    assert await get(client, "/readyz") == (200, {"status": "ready"})
    node.ready = False
    assert (await get(client, "/healthz"))[0] == 200
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("code", sorted(ERRORS))
async def test_every_error_of_the_table_becomes_a_problem(client, router, code: int) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise error_from_code(code, "It went wrong.", request_id=request.id, retry_after=1.2)

    router.answer = fail
    answer = await client.post(URL, json={"model": "m", "input": "x"})
    error = ERRORS[code]
    assert answer.status_code == error.http_status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "2"
    assert json.loads(await answer.get_data()) == {
        "type": f"/docs#{error.name}",
        "title": error.name,
        "status": error.http_status,
        "detail": "It went wrong.",
        "request_id": router.requests[0].id,
        "next_step": error.next_step,
        "code": code,
        "name": error.name,
        "retry_after": 1.2,
    }


async def test_a_bug_is_logged_once_and_told_without_a_code(client, router, caplog) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise ZeroDivisionError("secret detail")

    router.answer = fail
    with caplog.at_level(logging.INFO):
        status, body = await post(client, {"model": "m", "input": "x"})
    assert (status, body["title"]) == (500, "Internal Server Error")
    assert "code" not in body
    assert "secret" not in str(body)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert router.requests[0].id in record.getMessage()
    router.answer = type(router).answer
    assert (await post(client, {"model": "m", "input": "x"}))[0] == 200


async def test_a_group_of_errors_is_told_by_its_first(client, router) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise ExceptionGroup("several", [ExceptionGroup("inner", [error_from_code(1001, "No such model.")])])

    router.answer = fail
    assert (await post(client, {"model": "m", "input": "x"}))[0] == 404


BAD_BODIES = [
    (b"{", 400, "truncated"),
    (b"", 400, "truncated"),
    (b"nonsense", 400, "malformed"),
    (b'{"model":"m","input":"x"} more', 400, "trailing"),
    (b'{"model":"m","input":"x","timeout":NaN}', 400, "malformed"),
    (b'{"model":"m","input":"x","max_fee":-Infinity}', 400, "malformed"),
    (b'{"model":"m","input":"\xff\xfe"}', 400, "UTF-8"),
    (b'{"model":"m","in\xffput":"x"}', 400, "UTF-8"),
    (b'{"model":"m","input":"\\ud800"}', 400, "not JSON"),
    (b'{"model":"m","input":{"x":' + b"[" * 50_000, 400, "deep"),
    (b"[]", 422, "object"),
    (b'"text"', 422, "object"),
    (b"null", 422, "object"),
    (b'{"input":"x"}', 422, "`model`"),
    (b'{"model":"m"}', 422, "`input`"),
    (b'{"model":"m","input":""}', 422, "$.input"),
    (b'{"model":"m","input":{}}', 422, "$.input"),
    (b'{"model":"m","input":{"":1}}', 422, "$.input"),
    (b'{"model":"m","input":null}', 422, "$.input"),
    (b'{"model":"m","input":["x"]}', 422, "$.input"),
    (b'{"model":"m","input":3}', 422, "$.input"),
    (b'{"model":"m","input":{"x":1e999}}', 422, "$.input"),
    (b'{"model":"m","input":{"x":' + b"9" * 5000 + b"}}", 422, "$.input"),
    (b'{"model":7,"input":"x"}', 422, "$.model"),
    (b'{"model":"","input":"x"}', 422, "$.model"),
    (b'{"model":"' + b"m" * 301 + b'","input":"x"}', 422, "$.model"),
    (b'{"model":"no/../:way","input":"x"}', 422, "not a model name"),
    (b'{"model":"m:","input":"x"}', 422, "not a version"),
    (b'{"model":"m@12","input":"x"}', 422, "not a model id"),
    (b'{"model":"m","input":"x","modle":1}', 422, "`modle`"),
    (b'{"model":"m","input":"x","' + b"f" * 5000 + b'":1}', 422, "`fff"),
    (b'{"model":"m","input":"x","timeout":"soon"}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","timeout":0}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","timeout":-1}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","timeout":1e999}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","timeout":3601}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","timeout":true}', 422, "$.timeout"),
    (b'{"model":"m","input":"x","max_fee":-0.1}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":"NaN"}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":"sNaN"}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":"much"}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":0.0000001}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":1e999999999}', 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":' + b"9" * 50_000 + b"}", 422, "max_fee"),
    (b'{"model":"m","input":"x","max_fee":{}}', 422, "max_fee"),
    (b'{"model":"m","input":"x","min_stake":-1}', 422, "min_stake"),
    (b'{"model":"m","input":"x","min_stake":null}', 422, "min_stake"),
    (b'{"model":"m","input":"x","sort":"beauty"}', 422, "$.sort"),
    (b'{"model":"m","input":"x","dry_run":1}', 422, "$.dry_run"),
    (b'{"model":"m","input":"x","providers":[]}', 422, "$.providers"),
    (b'{"model":"m","input":"x","providers":{"not":[]}}', 422, "`not`"),
    (b'{"model":"m","input":"x","providers":{"only":["bob"]}}', 422, "$.providers.only[0]"),
    (b'{"model":"m","input":"x","providers":{"only":"bob"}}', 422, "$.providers.only"),
]


@pytest.mark.parametrize(("body", "status", "named"), BAD_BODIES, ids=lambda v: str(v)[:40])
async def test_bad_bodies(client, router, body: bytes, status: int, named: str) -> None:
    got, problem = await post(client, body)
    assert (got, problem["code"], problem["name"]) == (status, 1004, "ValidationFailed")
    assert named in problem["detail"]
    assert len(problem["detail"]) < 400
    assert not router.requests


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("nmae=x", "`nmae`"), ("limit=0", "limit"), ("limit=-1", "limit"), ("limit=1001", "limit"),
        ("limit=ten", "limit"), ("limit=", "limit"), ("limit=1.5", "limit"), ("max_fee=nan", "max_fee"),
        ("max_fee=-1", "max_fee"), ("max_fee=", "max_fee"), ("max_fee=1e400", "max_fee"),
        ("name=a&name=b", "twice"), ("name=%FF", "UTF-8"), ("name=" + "n" * 129, "name"),
        ("&".join(f"a{i}=1" for i in range(20)), "fields"),
    ],
)  # fmt: skip
async def test_bad_queries(client, query: str, named: str) -> None:
    status, problem = await get(client, f"/api/v1/models?{query}")
    assert (status, problem["code"]) == (422, 1004)
    assert named in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", URL, "POST"), ("PUT", URL, "POST"), ("DELETE", "/api/v1/status", "GET, HEAD"),
        ("POST", "/api/v1/models", "GET, HEAD"), ("OPTIONS", URL, "POST"),
    ],
)  # fmt: skip
async def test_wrong_methods(client, method: str, path: str, allow: str) -> None:
    answer = await client.open(path, method=method)
    assert answer.status_code == 405
    assert ", ".join(sorted(answer.headers["Allow"].split(", "))) == allow
    assert json.loads(await answer.get_data())["code"] == 1004


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/status/", "/static/x", "/docs/../x"])
async def test_unknown_paths(client, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "/docs" in json.loads(await answer.get_data())["detail"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_only_json_is_taken(client, router, kind: str) -> None:
    status, problem = await post(client, {"model": "m", "input": "x"}, **{"Content-Type": kind})
    assert (status, problem["code"]) == (415, 1004)
    assert "application/json" in problem["detail"]
    assert not router.requests


async def test_json_with_a_charset_is_json(client) -> None:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    assert (await post(client, {"model": "m", "input": "x"}, **kind))[0] == 200


async def test_a_large_body_is_refused(client, router, autojump_clock) -> None:
    status, problem = await post(client, {"model": "m", "input": "x" * 100_000})
    assert (status, problem["code"]) == (413, 4004)
    assert not router.requests


async def test_a_slow_body_is_given_up(app: QuartTrio, autojump_clock) -> None:
    async with app.test_client().request(URL, method="POST", headers=JSON) as connection:
        await connection.send(b'{"model":')
        started = trio.current_time()
        answer = await connection.as_response()
    assert trio.current_time() - started == pytest.approx(5)
    assert (answer.status_code, json.loads(await answer.get_data())["code"]) == (408, 1003)
