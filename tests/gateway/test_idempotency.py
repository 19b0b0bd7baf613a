"""Idempotency-Key: what is sent twice is done once, whatever happens to the first."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
from quart_trio.testing import TrioClient
from werkzeug.datastructures import Headers

from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import NodeBusy
from llmesh.gateway import idempotency
from llmesh.gateway.app import create_app
from llmesh.gateway.deploy import deploy_routes

from .conftest import FakeCatalogue, FakeNode, FakeRouter, label
from .test_deploy import FORM, FakeShelf, form, said, shelf  # noqa: F401 - a fixture

URL = "/api/v1/inference"
ASKED = {"model": "m", "input": "x"}


async def post(client: TrioClient, body: Any = ASKED, key: str | None = "k") -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post(URL, json=body, headers=headers)


async def content(answer: Any) -> dict[str, Any]:
    return json.loads(await answer.get_data())


async def test_the_same_again_gives_the_same_answer(client, router) -> None:
    first, again = await post(client), await post(client)
    assert await content(first) == await content(again)
    assert first.headers["X-Request-Id"] == again.headers["X-Request-Id"] == router.requests[0].id
    assert "Idempotency-Replayed" not in first.headers
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert len(router.requests) == 1


async def test_other_keys_and_none_run_anew(client, router) -> None:
    for key in ("k", "l", None, None):
        await post(client, key=key)
    assert len({request.id for request in router.requests}) == 4


async def test_another_request_under_the_key_is_a_conflict(client, router) -> None:
    await post(client)
    answer = await post(client, {"model": "m", "input": "y"})
    assert (answer.status_code, (await content(answer))["code"]) == (409, 4003)
    assert len(router.requests) == 1


async def test_a_later_life_of_the_node_asks_under_the_same_id(router) -> None:
    for _ in range(2):
        app = create_app(router, FakeCatalogue(), FakeNode())
        await post(app.test_client())
        await post(app.test_client(), {"model": "m", "input": "y"}, key="l")
    first, other, again, same = (request.id for request in router.requests)
    assert (first, other) == (again, same)
    assert first != other


async def test_while_the_first_runs_the_second_waits(client, router, autojump_clock) -> None:
    async def slowly(request: InferenceRequest) -> Result:
        await trio.sleep(5)
        return await label(request)

    router.answer = slowly
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await content(await post(client)))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(router.requests) == 1
    assert answers == [answers[0]] * 10


async def test_a_failure_is_told_to_all_who_wait_and_leaves_the_key_free(client, router) -> None:
    async def fail(request: InferenceRequest) -> Result:
        await trio.sleep(0.01)
        raise NodeBusy("No place is free.", retry_after=1)

    router.answer = fail
    codes: list[int] = []

    async def ask() -> None:
        codes.append((await post(client)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert (codes, len(router.requests)) == ([503] * 3, 1)
    router.answer = label
    assert (await post(client)).status_code == 200
    assert router.requests[0].id == router.requests[1].id


async def test_when_the_first_client_goes_the_second_takes_over(client, router) -> None:
    async def forever(request: InferenceRequest) -> Result:
        router.answer = label
        await trio.sleep_forever()
        raise AssertionError

    router.answer = forever
    statuses: list[int] = []

    async def second() -> None:
        statuses.append((await post(client)).status_code)

    async with trio.open_nursery() as waiting, trio.open_nursery() as going:
        going.start_soon(post, client)
        await router.entered.wait()
        waiting.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        going.cancel_scope.cancel()
    assert (statuses, len(router.requests)) == ([200], 2)


async def test_a_bug_leaves_the_key_free(client, router) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise ZeroDivisionError

    router.answer = fail
    assert (await post(client)).status_code == 500
    router.answer = label
    assert (await post(client)).status_code == 200


@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "ä", "k\tk"])
async def test_bad_keys(client, router, key: str) -> None:
    answer = await post(client, key=key)
    assert (answer.status_code, (await content(answer))["code"]) == (422, 1004)
    assert not router.requests


async def test_several_keys_are_told_as_such(client, router) -> None:
    headers = Headers([("Idempotency-Key", "one"), ("Idempotency-Key", "two")])
    answer = await client.post(URL, json=ASKED, headers=headers)
    assert answer.status_code == 422
    assert "several" in (await content(answer))["detail"]
    assert not router.requests


async def test_keys_are_forgotten_after_a_day(client, router, autojump_clock) -> None:
    await post(client)
    await trio.sleep(idempotency.KEPT - 1)
    await post(client)
    assert len(router.requests) == 1
    await trio.sleep(2)
    assert (await post(client, {"model": "m", "input": "y"})).status_code == 200
    assert len(router.requests) == 2


async def test_the_oldest_answers_go_first_and_nothing_under_way(client, router, monkeypatch) -> None:
    monkeypatch.setattr(idempotency, "MOST", 3)
    for key in "abcd":
        await post(client, key=key)
    await post(client, key="d")
    await post(client, key="b")
    assert len(router.requests) == 4
    await post(client, key="a")  # forgotten
    assert len(router.requests) == 5

    async def forever(request: InferenceRequest) -> Result:
        await trio.sleep_forever()
        raise AssertionError

    router.answer = forever
    async with trio.open_nursery() as nursery:
        for key in "xyz":
            nursery.start_soon(post, client, ASKED, key)
        await trio.testing.wait_all_tasks_blocked()
        assert (await post(client, key="w")).status_code == 503
        nursery.cancel_scope.cancel()
    router.answer = label
    assert (await post(client, key="w")).status_code == 200


async def test_kept_answers_are_bounded_in_bytes(client, router, monkeypatch) -> None:
    monkeypatch.setattr(idempotency, "MOST_BYTES", 1000)
    for key in "abcdef":
        await post(client, key=key)
    await post(client, key="a")
    assert len(router.requests) == 7
    await post(client, key="a")
    assert len(router.requests) == 7


async def test_a_model_brought_twice_is_deployed_once(shelf: FakeShelf) -> None:  # noqa: F811
    client = create_app(FakeRouter(), FakeCatalogue(), FakeNode(), None, deploy_routes(shelf)).test_client()
    headers = FORM | {"Idempotency-Key": "k"}

    async def bring(data: bytes, boundary: bytes = b"XX", **fields: Any) -> int:
        body = form(("metadata", None, said(**fields)), ("file", "m.onnx", data)).replace(b"XX", boundary)
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
        return int((await client.post("/api/v1/models", data=body, headers=headers | kind)).status_code)

    assert await bring(b"model") == 201
    assert await bring(b"model", b"YY") == 201
    assert len(shelf.deployed) == 1
    assert await bring(b"other") == 409
    assert await bring(b"model", fee=1) == 409
    assert len(shelf.deployed) == 1


TENSORS = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]}]}
FACES: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}, 1),
    "completion": ("/v1/completions", {"model": "m", "prompt": "x"}, 1),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": ["x", "y"]}, 2),
    "KServe": ("/v2/models/m/infer", TENSORS, 2),
    "KServe, binary": ("/v2/models/m/infer", TENSORS | {"parameters": {"binary_data_output": True}}, 2),
}


async def vector(request: InferenceRequest) -> Result:
    return replace(await label(request), output={"text": "z", "embedding": [0.5]})


@pytest.mark.parametrize(("path", "body", "runs"), FACES.values(), ids=FACES)
async def test_every_face_does_it_once(
    app, client, router, path: str, body: dict[str, Any], runs: int
) -> None:
    router.answer = vector

    async def ask(client: TrioClient, **more: Any) -> Any:
        return await client.post(path, json=body | more, headers={"Idempotency-Key": "k"})

    first, again = await ask(client), await ask(client)
    assert (first.status_code, again.status_code) == (200, 200)
    assert await first.get_data() == await again.get_data()
    ours = ("X-Request-Id", "Content-Type", "Inference-Header-Content-Length")
    assert [first.headers.get(name) for name in ours] == [again.headers.get(name) for name in ours]
    assert ("Idempotency-Replayed" in first.headers, "Idempotency-Replayed" in again.headers) == (False, True)
    assert len(router.requests) == runs
    conflict = await ask(client, max_fee=1) if "v2" not in path else await ask(client, id="other")
    assert conflict.status_code == 409
    # A later life of the node asks for the same under the same ids.
    await ask(create_app(router, FakeCatalogue(), FakeNode()).test_client())
    ids = [request.id for request in router.requests]
    assert sorted(ids[:runs]) == sorted(ids[runs:])
    assert len(set(ids)) == runs


async def test_the_same_body_for_another_model_is_a_conflict(client, router) -> None:
    codes = [
        (await client.post(f"/v2/models/{name}/infer", json=TENSORS, headers={"Idempotency-Key": "k"}))
        for name in ("m", "n")
    ]
    assert [answer.status_code for answer in codes] == [200, 409]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_takes_no_key(client, router, path: str) -> None:
    body = {"model": "m", "stream": True, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    body.pop("prompt" if "chat" in path else "messages")
    answer = await client.post(path, json=body, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, router.requests) == (400, [])
    assert "streams" in (await content(answer))["error"]["message"]
