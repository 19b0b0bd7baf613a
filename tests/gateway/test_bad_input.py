"""Bad input at every route of the app: each gets a clear answer in time, and nothing is run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio

from llmesh.gateway.app import GatewaySettings, application, routes
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.gate import Gate
from llmesh.gateway.limits import Limits
from llmesh.gateway.openapi import Route
from llmesh.gateway.rates import read_rates

from .conftest import FakeCatalogue, FakeNode, FakeRouter
from .test_deploy import FakeShelf, shelf  # noqa: F401 - a fixture
from .test_schemathesis import TABLE, table

ROUTES = [route for route in TABLE if route.answers]
WITH_BODY = [route for route in ROUTES if route.body]
HUGE = "n" * (1 << 20)
BODIES = {
    "empty": b"",
    "no JSON": b"nonsense",
    "cut short": b'{"model":',
    "no UTF-8": b'{"model":"\xff\xfe"}',
    "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "NaN": b'{"model":"m","input":"x","timeout":NaN}',
    "too deep": b'{"input":{"x":' + b"[" * 60_000,
    "null": b"null",
    "a list": b"[]",
    "10 000 elements": json.dumps([{"model": "m", "input": "x"}] * 10_000).encode(),
    "unknown fields": b'{"surprise":1}',
    "a huge field": json.dumps({HUGE: 1}).encode(),
    "a huge name": json.dumps({"model": HUGE, "name": HUGE, "input": "x"}).encode(),
    "wrong types": b'{"model":[],"input":7,"name":{},"path":1,"requests":"x","messages":3,"prompt":{}}',
    "too large": b" " * (16 * 1024 * 1024 + 1),
}


@pytest.fixture
def app(router: FakeRouter, shelf: FakeShelf) -> QuartTrio:  # noqa: F811
    return application(table(router, shelf), GatewaySettings(body_timeout=5))


def path(route: Route) -> str:
    values = {"id": "0" * 64, "model": "m", "version": "1.0.0"}
    return route.path.format(**{name: values[name] for name in route.variables})


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


async def told(answer: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(await answer.get_data())
    return body


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("route", WITH_BODY, ids=named)
async def test_bad_bodies(client, router, shelf, route: Route, body: bytes, autojump_clock) -> None:  # noqa: F811
    headers = {"Content-Type": "application/json"}
    answer = await client.post(path(route), data=body, headers=headers)
    assert answer.status_code in (400, 404, 413, 422)
    problem = json.dumps(await told(answer))
    assert len(problem) < 2000  # nothing is echoed back at length
    assert (router.requests, shelf.deployed) == ([], [])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
@pytest.mark.parametrize("route", WITH_BODY, ids=named)
async def test_bad_media_types(client, router, shelf, route: Route, kind: str) -> None:  # noqa: F811
    answer = await client.post(path(route), data=b'{"model":"m","input":"x"}', headers={"Content-Type": kind})
    assert answer.status_code in (400, 404, 415, 422)
    assert await told(answer)
    assert (router.requests, shelf.deployed) == ([], [])


@pytest.mark.parametrize("route", WITH_BODY, ids=named)
async def test_slow_bodies(app, router, route: Route, autojump_clock) -> None:
    headers = {"Content-Type": "application/json"}
    async with app.test_client().request(path(route), method="POST", headers=headers) as connection:
        started = trio.current_time()
        for _ in range(4):
            await connection.send(b'{"model":')
            await trio.sleep(1)
        answer = await connection.as_response()
    # Where the path names what is not there, nobody waits for the body.
    assert (answer.status_code, trio.current_time() - started) in ((408, pytest.approx(5)), (404, 4))
    assert not router.requests


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST", "GET", "OPTIONS"])
@pytest.mark.parametrize("route", ROUTES, ids=named)
async def test_wrong_methods(client, router, shelf, route: Route, method: str) -> None:  # noqa: F811
    allowed = {other.method for other in TABLE if other.path == route.path}
    if method in allowed:
        return
    answer = await client.open(path(route), method=method)
    assert answer.status_code == 405
    assert {*answer.headers["Allow"].split(", ")} - {"HEAD"} == allowed
    assert await told(answer)


@pytest.mark.parametrize(
    "text", [HUGE[:60_000], "%FF", "%00", "..%2f..%2fetc", "a%0d%0ab", "'; DROP TABLE models; --"]
)
@pytest.mark.parametrize("route", [route for route in ROUTES if route.variables], ids=named)
async def test_bad_paths(client, router, shelf, route: Route, text: str) -> None:  # noqa: F811
    url = route.path
    for name in route.variables:
        url = url.replace(f"{{{name}}}", text)
    answer = await client.open(url, method=route.method, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert len(json.dumps(await told(answer))) < 2000
    assert (router.requests, shelf.deployed) == ([], [])


async def test_a_name_that_is_none_of_those_allowed_leads_to_them(client) -> None:
    answer = await client.post("/api/v1/inference", json={"model": "m", "input": "x", "sort": "prize"})
    assert answer.status_code == 422
    told = (await answer.get_json())["detail"]
    assert told == "Invalid enum value 'prize' - at `$.sort`; /docs of this node lists what it may be."


async def test_a_field_that_there_is_not_leads_to_those_that_there_are(client) -> None:
    answer = await client.post("/api/v1/inference", json={"model": "m", "input": "x", "timout": 3})
    told = (await answer.get_json())["detail"]
    assert told == "Object contains unknown field `timout`; /docs of this node lists those that there are."


async def test_each_row_of_a_batch_counts_as_an_inference(router, shelf) -> None:  # noqa: F811
    gate = Gate(limits=Limits(read_rates("inference=3/minute")))
    table = routes(router, FakeCatalogue(), FakeNode(), batch_routes(router))
    client = application(table, GatewaySettings(gate)).test_client()
    rows = [{"model": "m", "input": str(n), "dry_run": n == 0} for n in range(6)]
    answer = await client.post("/api/v1/inference/batch", json={"requests": rows})
    results = (await told(answer))["results"]
    assert ["result" in row for row in results] == [True] * 4 + [False] * 2
    assert {row["error"]["code"] for row in results[4:]} == {4002}
    assert len(router.requests) == 3
