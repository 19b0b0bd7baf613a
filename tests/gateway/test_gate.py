"""Who gets in with which key, and what is said to those who do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, PeerId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import Unauthorized
from llmesh.gateway.app import GatewaySettings, create_app, routes
from llmesh.gateway.callers import GRANTS, Scope
from llmesh.gateway.gate import Gate, presented_key
from llmesh.gateway.guard import Guard
from llmesh.gateway.keys import Keys, open_keys
from llmesh.gateway.limits import Limits
from llmesh.gateway.rates import Rate, Rates
from llmesh.journal.open import open_journal

OWNER = PeerId("12D3KooW" + "A" * 44)
BODY = {"model": "m", "input": "x"}
READ = frozenset({Scope.READ})


@pytest.fixture
async def keys(tmp_path: Path):
    async with (
        open_journal(tmp_path / "journal.db", OWNER) as journal,
        open_keys(journal, b"s" * 32) as keys,
    ):
        yield keys


@pytest.fixture
def make(router, catalogue, node, keys: Keys) -> Callable[..., QuartTrio]:
    def made(**settings: Any) -> QuartTrio:
        return create_app(router, catalogue, node, GatewaySettings(Gate(keys=keys, **settings)))

    return made


async def ask(app: QuartTrio, key: str | None = None, path: str = "/api/v1/status", **more: Any) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = app.test_client()
    if path == "/api/v1/inference":
        answer = await client.post(path, json=BODY, headers=headers, **more)
    else:
        answer = await client.get(path, headers=headers, **more)
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(await answer.get_data())["code"] == Unauthorized.code
    return answer.status_code


async def test_without_keys_loopback_serves_its_owner(make, keys: Keys) -> None:
    app = make()
    assert await ask(app) == 200
    assert await ask(app, "none") == 200, "clients that must send something send anything"
    assert await ask(app, "llmesh_unknown") == 401


async def test_the_first_key_closes_the_door(make, keys: Keys) -> None:
    app = make()
    row, text = await keys.create("a", READ, None)
    assert await ask(app) == 401
    assert await ask(app, "none") == 401
    assert await ask(app, text) == 200
    await keys.revoke(row.id)
    assert await ask(app, text) == 401
    assert await ask(app) == 200


async def test_elsewhere_there_is_always_one_needed(make, keys: Keys) -> None:
    app = make(always=True)
    assert await ask(app) == 401
    answer = await app.test_client().get("/api/v1/status")
    assert "keys create" in json.loads(await answer.get_data())["detail"]
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert await ask(app, path=path) == 200
    _, text = await keys.create("a", READ, None)
    assert await ask(app, text) == 200


async def test_a_key_opens_what_its_scopes_say(make, keys: Keys, router) -> None:
    app = make()
    _, reading = await keys.create("reads", READ, None)
    _, running = await keys.create("runs", frozenset({Scope.INFERENCE, Scope.READ}), None)
    assert await ask(app, reading, "/api/v1/inference") == 401
    assert not router.requests
    assert await ask(app, running, "/api/v1/inference") == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/inference", BODY),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
        ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_every_face_spends_from_the_keys_purse(
    make, keys: Keys, router, path: str, body: dict[str, Any]
) -> None:
    row, text = await keys.create("a", frozenset({Scope.INFERENCE}), Amount(100))
    answer = await make().test_client().post(path, json=body, headers={"Authorization": f"Bearer {text}"})
    await answer.get_data()
    assert router.purses == [keys.purse(row)] != [None]


async def test_of_two_hundred_at_once_a_budget_for_a_hundred_lets_a_hundred_pass(
    make, keys: Keys, router
) -> None:
    row, text = await keys.create("a", frozenset({Scope.INFERENCE}), Amount(100))
    label, app, seen = router.answer, make(), []

    async def pay(request: InferenceRequest) -> Result:
        purse, attempt = router.purses[-1], AttemptId(request.id, 1)
        await purse.hold(attempt, Amount(1))
        purse.spend(attempt, Amount(1))
        return await label(request)

    async def infer() -> None:
        seen.append(await ask(app, text, "/api/v1/inference"))

    router.answer = pay
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(infer)
    assert (seen.count(200), seen.count(402)) == (100, 100)
    purse = keys.purse(row)
    assert purse is not None
    assert purse.left == Amount(0)


async def test_no_key_goes_into_what_peers_are_asked(make, keys: Keys, router) -> None:
    row, text = await keys.create("agent-smith", frozenset({Scope.INFERENCE}), Amount(100))
    assert await ask(make(), text, "/api/v1/inference") == 200
    for secret in (text, row.id, row.label, row.digest.hex()):
        assert secret not in repr(router.requests)


async def test_the_owner_spends_without_limit(make, router) -> None:
    assert await ask(make(), path="/api/v1/inference") == 200
    assert router.purses == [None]


async def test_a_key_does_not_help_a_foreign_page(make, keys: Keys) -> None:
    _, text = await keys.create("a", READ, None)
    answer = (
        await make()
        .test_client()
        .get("/api/v1/status", headers={"Authorization": f"Bearer {text}", "Origin": "http://evil.example"})
    )
    assert answer.status_code == 401


async def test_the_owners_socket_asks_for_nothing(router, node) -> None:
    app = create_app(router, None, node, GatewaySettings(Gate(guard=None)))
    answer = await app.test_client().get("/api/v1/status", headers={"Host": "owner", "Origin": "x"})
    assert answer.status_code == 200


async def test_calls_are_counted_by_key_and_guesses_by_address(make, keys: Keys) -> None:
    _, one = await keys.create("one", READ, None)
    _, two = await keys.create("two", READ, None)
    app = make(limits=Limits(Rates(api=Rate(3, 3600))), always=True)
    assert [await ask(app, one) for _ in range(4)] == [200, 200, 200, 429]
    assert await ask(app, two) == 200
    assert [await ask(app, "llmesh_guess") for _ in range(4)] == [401, 401, 401, 429]
    assert await ask(app, two) == 200


async def test_inferences_are_counted_by_address_whoever_asks(make, keys: Keys) -> None:
    both = [(await keys.create(name, frozenset({Scope.INFERENCE}), None))[1] for name in "ab"]
    app = make(limits=Limits(Rates(inference=Rate(2, 60))), proxies=(ip_network("10.0.0.1"),))

    async def infer(key: str, peer: str, behind: str) -> int:
        answer = await app.test_client().post(
            "/api/v1/inference",
            json=BODY,
            headers={"Authorization": f"Bearer {key}", "X-Forwarded-For": behind},
            scope_base={"client": (peer, 1)},
        )
        return answer.status_code

    assert [await infer(key, "10.0.0.1", "9.9.9.9") for key in (*both, *both)] == [200, 200, 429, 429]
    assert await infer(both[0], "10.0.0.1", "9.9.9.8") == 200
    assert [await infer(both[0], "10.0.0.2", f"9.9.9.{n}") for n in range(3)] == [200, 200, 429]


def test_every_route_says_whom_it_is_for(router, node) -> None:
    for route in routes(router, None, node):
        health = route.path in ("/healthz", "/readyz") or route.path.startswith("/v2/health/")
        open_to_all = (
            health or route.path in ("/", "/docs", "/openapi.json") or route.path.startswith("/page/")
        )
        assert (route.scope is Scope.OPEN) == open_to_all, route.path
        assert route.scope in GRANTS or open_to_all


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer llmesh_x", "llmesh_x"),
        ("bearer  llmesh_x ", "llmesh_x"),
        ("Basic llmesh_x", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        ("llmesh_x", None),
    ],
)
def test_a_key_is_a_bearer_token(header: str, key: str | None) -> None:
    assert presented_key(header) == key


def test_the_guard_is_on_by_default() -> None:
    assert Gate().guard == Guard()
