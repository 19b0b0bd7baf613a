"""The OpenAPI document is valid, and says what the app does."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from quart_trio import QuartTrio

from llmesh.errors import ERRORS
from llmesh.gateway.event_schema import EVENT_BODIES
from llmesh.gateway.page.routes import page_routes
from llmesh.gateway.websocket.frames import CLIENT_FRAMES, NODE_FRAMES


@pytest.fixture
async def told(client) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    document: dict[str, Any] = json.loads(await answer.get_data())
    return document


def check(told: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": told["components"]}
    Draft202012Validator(schema).validate(value)


async def test_it_is_valid(told) -> None:
    validate(told)


async def test_it_has_every_route(told, app: QuartTrio) -> None:
    served = {
        (re.sub("<(.*?)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        if not rule.websocket
        for method in rule.methods - {"HEAD"}
    }
    told_of = {(path, m.upper()) for path, methods in told["paths"].items() for m in methods}
    pages = {("/openapi.json", "GET"), ("/docs", "GET")} | {(route.path, "GET") for route in page_routes()}
    assert served - told_of == pages
    assert told_of <= served


@pytest.mark.parametrize(
    ("path", "name"), [("status", "StatusBody"), ("models", "ModelsBody"), ("models?limit=1", "ModelsBody")]
)
async def test_answers_fit_it(client, told, path: str, name: str) -> None:
    check(told, name, json.loads(await (await client.get(f"/api/v1/{path}")).get_data()))


async def test_inference_fits_it(client, told) -> None:
    asked = {"model": "m", "input": {"text": "x"}, "timeout": 3, "max_fee": 0.5}
    check(told, "InferenceBody", asked)
    answer = await client.post("/api/v1/inference", json=asked)
    check(told, "ResultBody", json.loads(await answer.get_data()))


async def test_problems_fit_it_and_are_announced(client, told) -> None:
    responses = told["paths"]["/api/v1/inference"]["post"]["responses"]
    for body, kind in ((b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain")):
        answer = await client.post("/api/v1/inference", data=body, headers={"Content-Type": kind})
        check(told, "Problem", json.loads(await answer.get_data()))
        assert str(answer.status_code) in responses


async def test_the_page_needs_nothing_from_elsewhere(client) -> None:
    answer = await client.get("/docs")
    page = await answer.get_data(as_text=True)
    policy = answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script|<link|<img|https?://|javascript:|\son\w+=", page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy


async def test_the_page_explains_every_route_and_error(client, told) -> None:
    page = await (await client.get("/docs")).get_data(as_text=True)
    assert all(path in page for path in told["paths"])
    for path, methods in told["paths"].items():
        for method in methods:
            assert re.search(
                rf'<li><a href="#[\w-]+"><code>{method.upper()} {re.escape(path)}</code></a>', page
            )
    assert all(f'<h2 id="{name}">' in page for name in told["components"]["schemas"])
    for error in ERRORS.values():
        assert f'<a id="{error.name}"></a>{error.code}' in page
    for shape in (*CLIENT_FRAMES, *NODE_FRAMES, *EVENT_BODIES.values()):
        assert f'<h2 id="{shape.__name__}">' in page
    for link in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{link}"' in page
