"""Streams over a socket: their frames, many at once, cancelling, slow clients, failures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from llmesh.core.exchange import Accepted
from llmesh.core.inference import Chunk, InferenceRequest, Result
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import NodeBusy
from llmesh.journal.purse import DurablePurse
from tests.gateway.conftest import FakeRouter, label

if TYPE_CHECKING:
    from tests.gateway.websocket.conftest import Client

Connect: TypeAlias = "Callable[..., AbstractAsyncContextManager[Client]]"
Gateway: TypeAlias = "Callable[..., AbstractAsyncContextManager[Connect]]"
CONTRACT = '{"type": "inference_stream", "model": "gpt-mini", "input": "给我讲个故事", "stream": true}'


def ask(id: str, **fields: object) -> dict[str, object]:
    return {"type": "inference_stream", "id": id, "model": "gpt-mini", "input": "hi", **fields}


async def wait_if_asked(request: InferenceRequest) -> Result:
    if request.timeout == 1:
        await trio.sleep_forever()
    return await label(request)


async def test_the_contracts_frame_streams_text_and_ends_with_the_whole(
    connect: Connect, router: FakeRouter
) -> None:
    router.after = ["once", " upon"]
    async with connect() as client:
        await client.send(CONTRACT)
        accepted = await client.receive()
        id = accepted["id"]
        assert accepted == {"type": "accepted", "id": id, "request_id": id, "queued": 0}
        for index, text in enumerate(router.after):
            assert await client.receive() == {"type": "chunk", "id": id, "index": index, "text": text}
        completed = await client.receive()
        assert completed["type"] == "completed"
        assert (completed["id"], completed["request_id"]) == (id, id)
        assert completed["output"]["label"] == "positive"
        assert completed["fee"] == 0.1
        assert completed["usage"] == {"input_tokens": 4, "output_tokens": 0, "compute_ms": 0.5}
    [request] = router.requests
    assert (request.model.name, request.input, request.timeout) == (
        "gpt-mini",
        {"text": "给我讲个故事"},
        30.0,
    )


async def test_wishes_are_heard_and_pieces_may_be_left_out(connect: Connect, router: FakeRouter) -> None:
    router.after = ["never", "shown"]
    async with connect() as client:
        await client.send(ask("a", stream=False, max_fee="0.5", timeout=3, sort="latency", min_stake=2))
        assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "completed"]
    assert str(router.requests[0].max_fee) == "0.5"
    assert isinstance(router.wishes[0], Wishes)
    assert router.wishes[0].sort is Sort.LATENCY


async def test_many_streams_run_at_once_and_no_more_than_that(gateway: Gateway, router: FakeRouter) -> None:
    gate, entered = trio.Event(), list[str]()

    async def wait(request: InferenceRequest) -> Result:
        entered.append(str(request.input["text"]))
        await gate.wait()
        return await label(request)

    router.answer = wait
    async with gateway(streams=5) as connect, connect() as client:
        for number in range(5):
            await client.send(ask(str(number), input=f"text {number}"))
            assert (await client.receive())["type"] == "accepted"
        await client.send(ask("6"))
        error = await client.receive()
        assert (error["id"], error["code"], error["retry_after"]) == ("6", 2003, 1.0)
        await client.send(ask("4"))
        error = await client.receive()
        assert (error["code"], "id" in error) == (4003, False)
        gate.set()
        ends = {(frame := await client.receive())["id"]: frame for _ in range(5)}
        assert {id: frame["output"]["echo"] for id, frame in ends.items()} == {
            str(number): f"text {number}" for number in range(5)
        }
        await client.send(ask("4"))
        assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "completed"]


async def test_cancelling_stops_the_work_and_only_it(connect: Connect, router: FakeRouter) -> None:
    router.answer = wait_if_asked
    async with connect() as client:
        await client.send(ask("long", timeout=1))
        assert (await client.receive())["type"] == "accepted"
        await router.entered.wait()
        await client.send({"type": "cancel", "id": "long"})
        assert await client.receive() == {"type": "cancelled", "id": "long"}
        assert router.cancelled.is_set()
        await client.send(ask("short"))
        assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "completed"]


async def test_leaving_stops_the_work(connect: Connect, router: FakeRouter) -> None:
    router.answer = wait_if_asked
    async with connect() as client:
        await client.send(ask("long", timeout=1))
        await router.entered.wait()
    with trio.fail_after(5):
        await router.cancelled.wait()


async def test_a_failure_is_told_on_its_stream_with_its_request(connect: Connect, router: FakeRouter) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise NodeBusy("No place is free.", retry_after=2.5)

    router.answer = fail
    async with connect() as client:
        await client.send(ask("a"))
        request = (await client.receive())["request_id"]
        assert await client.receive() == {
            "type": "error",
            "id": "a",
            "request_id": request,
            "code": 2003,
            "name": "NodeBusy",
            "message": "No place is free.",
            "next_step": NodeBusy.next_step,
            "retry_after": 2.5,
        }


async def test_an_answer_that_no_json_can_hold_is_an_error(connect: Connect, router: FakeRouter) -> None:
    async def deep(request: InferenceRequest) -> Result:
        nested: Any = []
        for _ in range(100_000):
            nested = [nested]
        result = await label(request)
        result.output["label"] = nested  # type: ignore[index]
        return result

    router.answer = deep
    async with connect() as client:
        await client.send(ask("a"))
        assert [(await client.receive())["type"] for _ in range(2)] == ["accepted", "error"]


class Spring(FakeRouter):
    """A router that streams without end and counts what was taken from it."""

    poured = 0

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AsyncIterator[AsyncIterator[Accepted | Chunk | Result]]:
        async def events() -> AsyncIterator[Accepted | Chunk | Result]:
            while True:
                await trio.lowlevel.checkpoint()
                yield Chunk(self.poured, "x" * 10_000)
                self.poured += 1

        async with aclosing(events()) as pieces:
            yield pieces


async def test_a_slow_client_holds_its_own_streams_back_and_nobody_else(
    gateway: Gateway, monkeypatch: Any, router: FakeRouter
) -> None:
    spring = Spring()
    monkeypatch.setattr(router, "stream", spring.stream)
    async with gateway() as connect, connect() as slow:
        await slow.send(ask("a"))
        before = -1
        while before != spring.poured:
            before = spring.poured
            await trio.sleep(0.2)
        assert 0 < before * 10_000 < 64 << 20, "as much as the kernel's buffers hold"
        async with connect() as other:
            await other.send({"type": "ping"})
            assert await other.receive() == {"type": "pong"}
            await other.send(ask("b"))
            assert (await other.receive())["type"] == "chunk"
