"""Server-sent events: inferences as they come, and events of the mesh, over plain HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
import trio
import trio.testing
from quart_trio import QuartTrio

from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import ModelFailed, ModelNotFound, Unauthorized
from llmesh.gateway import server, server_sent
from llmesh.gateway.gate import Gate
from llmesh.mesh.events import PeerChange, PeerUpdated, Subscription

from .conftest import OTHER, label

# On trio the client leaves the generators of a stream that was left to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WANTED = {"Accept": "text/event-stream"}
INFERENCE = "/api/v1/inference"


def read(text: str) -> Iterator[tuple[str, Any]]:
    """The events of a stream; each has one line of data."""
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def events_of(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    text = ""
    async for piece in answer.aiter_text():
        text += piece
        whole, found, text = text.rpartition("\n\n")
        for event in read(whole + found):
            yield event


@pytest.fixture
async def http(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


async def test_an_inference_comes_as_the_frames_of_the_websocket(http, router) -> None:
    router.after = ["Once", " upon"]
    answer = await http.post(INFERENCE, json={"model": "m", "input": "x"}, headers=WANTED)
    assert answer.headers["content-type"] == "text/event-stream"
    told = list(read(answer.text))
    assert [name for name, _ in told] == ["accepted", "chunk", "chunk", "completed"]
    assert all(frame["type"] == name for name, frame in told)
    assert [frame["text"] for name, frame in told if name == "chunk"] == ["Once", " upon"]
    assert told[-1][1]["output"]["label"] == "positive"
    assert told[-1][1]["fee"] == 0.1
    assert {frame["id"] for _, frame in told} == {answer.headers["x-request-id"]}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/event-stream, */*", "text/event-stream"),
    ],
)
async def test_who_asks_for_events_gets_them(http, accept: str, kind: str) -> None:
    answer = await http.post(INFERENCE, json={"model": "m", "input": "x"}, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


async def test_a_failure_before_the_beginning_is_a_problem(http, router, monkeypatch) -> None:
    @asynccontextmanager
    async def stream(*_: object) -> AsyncIterator[None]:
        raise ModelNotFound("Nobody offers it.")
        yield

    monkeypatch.setattr(router, "stream", stream)
    answer = await http.post(INFERENCE, json={"model": "m", "input": "x"}, headers=WANTED)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == 1001


async def test_a_later_failure_is_an_event(http, router) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise ModelFailed("The worker died.")

    router.answer = fail
    answer = await http.post(INFERENCE, json={"model": "m", "input": "x"}, headers=WANTED)
    (first, _), (last, error) = read(answer.text)
    assert (first, last) == ("accepted", "error")
    assert (error["code"], error["name"]) == (2004, "ModelFailed")
    assert error["request_id"] == answer.headers["x-request-id"]


async def test_what_no_json_can_hold_is_an_error_event(http, router) -> None:
    async def deep(request: InferenceRequest) -> Result:
        made = await label(request)
        made.output["label"] = "\ud800"  # type: ignore[index]
        return made

    router.answer = deep
    answer = await http.post(INFERENCE, json={"model": "m", "input": "x"}, headers=WANTED)
    assert list(read(answer.text))[-1][1]["code"] == 2004


@pytest.mark.parametrize(
    ("body", "more"),
    [({"dry_run": True}, {}), ({}, {"Idempotency-Key": "once"}), ({"timeout": 0}, {}), ({"x": 1}, {})],
)
async def test_what_cannot_stream_is_refused_and_not_run(client, router, body: Any, more: Any) -> None:
    asked = {"model": "m", "input": "x", **body}
    answer = await client.post(INFERENCE, json=asked, headers={**WANTED, **more})
    assert (answer.status_code, json.loads(await answer.get_data())["code"]) == (422, 1004)
    assert router.requests == []


async def test_hanging_up_stops_the_work(http, router) -> None:
    async def forever(request: InferenceRequest) -> Result:
        await trio.sleep_forever()
        raise AssertionError

    router.answer = forever
    async with http.stream("POST", INFERENCE, json={"model": "m", "input": "x"}, headers=WANTED) as answer:
        async for name, _ in events_of(answer):
            assert name == "accepted"
            break
    with trio.fail_after(20):
        await router.cancelled.wait()


async def test_events_are_told_by_their_names(http, node) -> None:
    async with http.stream("GET", "/api/v1/events?names=peer_update,inference") as answer:
        told = events_of(answer)
        assert await anext(told) == (
            "subscribed",
            {"type": "subscribed", "events": ["inference", "peer_update"]},
        )
        node.events.tell(PeerUpdated(OTHER, PeerChange.UP))
        name, frame = await anext(told)
    assert name == "peer_update"
    assert frame == {
        "type": "event", "event": "peer_update", "data": {"peer_id": OTHER, "change": "up"}, "dropped": 0,
    }  # fmt: skip


@pytest.mark.parametrize("query", ["names=gossip", "names=inference,", "other=1", "names=%ff"])
async def test_unknown_events_are_refused(client, query: str) -> None:
    answer = await client.get(f"/api/v1/events?{query}")
    assert (answer.status_code, json.loads(await answer.get_data())["code"]) == (422, 1004)


async def test_more_listeners_than_there_is_room_for_are_refused(http, monkeypatch) -> None:
    monkeypatch.setattr(server_sent, "MAX_LISTENERS", 1)
    async with http.stream("GET", "/api/v1/events") as first:
        told = events_of(first)
        await anext(told)
        second = await http.get("/api/v1/events")
        assert (second.status_code, second.json()["code"]) == (503, 2003)


async def test_who_asks_for_the_head_of_events_gets_it_and_listens_to_none(http, node) -> None:
    with trio.fail_after(20):
        answer = await http.head("/api/v1/events")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert not node.events._subscriptions


async def test_who_waits_for_events_does_not_hold_up_the_stop(app: QuartTrio, monkeypatch) -> None:
    monkeypatch.setattr(server, "GRACE", 3600.0)
    stop = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(server.serve, app, server.bind("127.0.0.1", 0), stop)
            async with httpx.AsyncClient() as http, http.stream("GET", f"{url}/api/v1/events") as answer:
                lines = answer.aiter_lines()
                assert await anext(lines) == "event: subscribed"
                stop.set()
                assert [line async for line in lines if line.startswith("event")] == []


async def test_an_event_that_comes_as_the_time_is_up_is_told(node, mock_clock) -> None:
    request: Any = SimpleNamespace(stopping=trio.Event(), readmit=lambda: None)
    happened = PeerUpdated(OTHER, PeerChange.UP)
    found: list[bytes] = []

    async def hear(subscription: Subscription) -> None:
        async with aclosing(server_sent._happening(subscription, request)) as pieces:
            found.extend([await anext(pieces), await anext(pieces)])

    with node.events.subscribed([happened.name]) as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, subscription)
            await trio.testing.wait_all_tasks_blocked()
            node.events.tell(happened)
            await trio.lowlevel.checkpoint()
            mock_clock.jump(server_sent.STILL_HERE)
    assert found[1].startswith(b"event: peer_update")


async def test_silence_is_broken_by_a_comment_and_a_void_key_ends_it(http, monkeypatch) -> None:
    monkeypatch.setattr(server_sent, "STILL_HERE", 0.01)
    async with http.stream("GET", "/api/v1/events") as answer:
        lines = answer.aiter_lines()
        while await anext(lines) != ": still here":
            pass

        def refuse(self: Gate, address: str, key: str | None) -> None:
            raise Unauthorized("This key was revoked.")

        monkeypatch.setattr(Gate, "caller", refuse)
        with trio.fail_after(20):
            rest = [line async for line in lines]
    assert "event: error" in rest
    assert json.loads(next(line for line in rest if line.startswith("data:"))[5:])["code"] == 4001
