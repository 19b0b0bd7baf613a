"""A web page must not be able to use the owner's node."""

from __future__ import annotations

import json

import pytest

from llmesh.errors import Unauthorized
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.gate import Gate
from llmesh.gateway.guard import Guard

LOCAL = Guard()


async def ask(client, **headers: str) -> int:
    answer = await client.post("/api/v1/inference", json={"model": "m", "input": "x"}, headers=headers)
    if answer.status_code != 200:
        assert json.loads(await answer.get_data())["code"] == Unauthorized.code
    return answer.status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"],
)
async def test_own_hosts(client, host: str) -> None:
    assert await ask(client, Host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.7",
        "", ":8080", "[::2]", "0.0.0.0", "localhost@evil.example", "127.1", "xn--localhost",
    ],
)  # fmt: skip
async def test_foreign_hosts(client, router, host: str) -> None:
    assert await ask(client, Host=host) == 401
    assert not router.requests


async def test_foreign_hosts_read_nothing(client) -> None:
    for path in ("/api/v1/status", "/api/v1/models", "/healthz", "/docs", "/nowhere"):
        assert (await client.get(path, headers={"Host": "evil.example"})).status_code == 401


@pytest.mark.parametrize(
    "origin", ["http://localhost:8080", "https://localhost:8080", "HTTP://LOCALHOST:8080"]
)
async def test_own_origin(client, origin: str) -> None:
    assert await ask(client, Host="localhost:8080", Origin=origin) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "null", "", "http://localhost:3000", "http://localhost", "http://127.0.0.1:8080",
        "file://", "http://localhost:8080.evil.example", "chrome-extension://abc",
    ],
)  # fmt: skip
async def test_foreign_origins(client, router, origin: str) -> None:
    assert await ask(client, Host="localhost:8080", Origin=origin) == 401
    assert not router.requests


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 401), ("same-site", "cors", 401), ("cross-site", "websocket", 401),
        ("same-origin", "cors", 200), ("none", "navigate", 200), ("cross-site", "navigate", 200),
    ],
)  # fmt: skip
async def test_what_a_browser_says_of_the_asker(client, site: str, mode: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert (await client.get("/api/v1/status", headers=headers)).status_code == status


async def test_a_form_of_a_page_does_not_pass(client, router) -> None:
    """What a page can send without asking first: its Origin, and none of our content type."""
    body = b'{"model":"m","input":"x","y":"="}'
    for headers in ({"Origin": "http://evil.example"}, {}):
        answer = await client.post(
            "/api/v1/inference", data=body, headers={"Content-Type": "text/plain", **headers}
        )
        assert answer.status_code == (401 if headers else 415)
    assert not router.requests


@pytest.mark.parametrize(
    ("listens_on", "names", "host", "status"),
    [
        ("192.168.1.5", (), "192.168.1.5:8080", 200),
        ("192.168.1.5", (), "192.168.1.6:8080", 401),
        ("0.0.0.0", (), "192.168.1.5:8080", 200),
        ("::", (), "[fe80::1]:8080", 200),
        ("0.0.0.0", (), "evil.example", 401),
        ("0.0.0.0", ("Node.Home",), "node.home:8080", 200),
        ("127.0.0.1", ("node.home",), "node.home", 200),
        ("127.0.0.1", (), "192.168.1.5", 401),
    ],
)
async def test_hosts_follow_from_where_it_listens(
    router, node, listens_on: str, names: tuple[str, ...], host: str, status: int
) -> None:
    settings = GatewaySettings(Gate(Guard.for_host(listens_on, names)))
    client = create_app(router, None, node, settings).test_client()
    assert (await client.get("/healthz", headers={"Host": host})).status_code == status
