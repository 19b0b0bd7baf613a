"""The inference protocol between two real sessions on the in-memory network, in virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmesh.core.amount import Amount
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Attempt, Chunk, Consumer, Usage
from llmesh.errors import (
    MeshError,
    ModelFailed,
    NetworkError,
    NodeBusy,
    RequestTimeout,
    ValidationFailed,
)
from llmesh.net import inference
from llmesh.net.call import Call, Handler
from llmesh.net.inference import PROTOCOL, Serve, ask, handler
from llmesh.net.memory import MemoryNetwork
from llmesh.net.session import Session
from llmesh.net.sessions import open_sessions
from llmesh.wire.inference import encode_event
from tests.core.receipts import costing

CONSUMER, PROVIDER = PeerId("consumer"), PeerId("provider")
ATTEMPT = Attempt(RequestId("0" * 32), 1, ModelId("a" * 64), {"text": "hi"}, Amount(100), 5.0)
DONE = Completed(Usage(1, 2, 3.0), costing(100))
ANSWER: list[Event] = [Accepted(2, 0.5), Chunk(0, "a"), Chunk(1, "b", (7,), {"n": [1, None]}), DONE]


@asynccontextmanager
async def asking(answer: Handler, network: MemoryNetwork | None = None) -> AsyncGenerator[Session]:
    """A session whose peer answers the inference protocol like this."""
    network = network or MemoryNetwork()
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(network.host(CONSUMER))
        theirs = await stack.enter_async_context(network.host(PROVIDER))
        await stack.enter_async_context(open_sessions(theirs, {PROTOCOL: answer}))
        sessions = await stack.enter_async_context(open_sessions(ours, {}))
        yield await sessions.to(PROVIDER, theirs.addresses)


def serving(events: Sequence[Event | MeshError | float]) -> tuple[Serve, list[object]]:
    """A `serve` that yields, raises or sleeps (seconds) as told, and what it saw."""
    seen: list[object] = []

    async def play() -> AsyncGenerator[Event]:
        for event in events:
            if isinstance(event, float):
                await trio.sleep(event)
            elif isinstance(event, MeshError):
                raise event
            else:
                yield event

    @asynccontextmanager
    async def serve(attempt: Attempt, consumer: Consumer) -> AsyncGenerator[AsyncIterator[Event]]:
        seen.extend((attempt, consumer.peer_id))
        try:
            stream = play()
            yield stream
            await stream.aclose()
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        seen.append("left")

    return serve, seen


def saying(*messages: bytes) -> Handler:
    """A peer that says just that, legal or not."""

    async def answer(call: Call, message: bytes) -> None:
        for data in messages:
            await call.send(data)

    return answer


async def collect(session: Session, attempt: Attempt = ATTEMPT) -> list[Event]:
    async with ask(session, attempt) as events:
        return [event async for event in events]


async def test_an_answer_arrives_as_it_was_given() -> None:
    serve, seen = serving(ANSWER)
    async with asking(handler(serve)) as session:
        assert await collect(session) == ANSWER
        await wait_all_tasks_blocked()
        assert session.idle
    assert seen == [ATTEMPT, CONSUMER, "left"]


async def test_chunks_arrive_while_the_provider_still_works(autojump_clock: MockClock) -> None:
    serve, _ = serving([Accepted(), Chunk(0, "a"), 1.0, Chunk(1, "b"), DONE])
    async with asking(handler(serve)) as session, ask(session, ATTEMPT) as events:
        arrivals = [trio.current_time() async for _ in events]
    assert [round(at - arrivals[0], 3) for at in arrivals] == [0, 0, 1, 1]


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_a_failure_is_raised_as_it_was_at_any_point(before: int) -> None:
    serve, seen = serving([*ANSWER[:before], NodeBusy("All places are taken.", retry_after=1.5)])
    async with asking(handler(serve)) as session, ask(session, ATTEMPT) as events:
        for expected in ANSWER[:before]:
            assert await anext(events) == expected
        with pytest.raises(NodeBusy, match="All places are taken") as caught:
            await anext(events)
    assert caught.value.remote
    assert caught.value.peer_id == PROVIDER
    assert caught.value.retry_after == 1.5
    assert seen[:2] == [ATTEMPT, CONSUMER]


async def test_leaving_early_cancels_at_the_provider(autojump_clock: MockClock) -> None:
    serve, seen = serving([Accepted(), Chunk(0), 1000.0, DONE])
    start = trio.current_time()
    async with asking(handler(serve)) as session:
        async with ask(session, ATTEMPT) as events:
            assert await anext(events) == Accepted()
        await wait_all_tasks_blocked()
        assert seen[-1] == "cancelled"
        assert session.idle
        assert trio.current_time() - start < 1


async def test_a_cancelled_consumer_cancels_at_the_provider(autojump_clock: MockClock) -> None:
    serve, seen = serving([Accepted(), 1000.0, DONE])
    async with asking(handler(serve)) as session:
        with trio.move_on_after(1) as scope:
            await collect(session)
        await wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert seen[-1] == "cancelled"


async def test_the_time_given_ends_the_work_at_the_provider(autojump_clock: MockClock) -> None:
    serve, seen = serving([Accepted(), 1000.0, DONE])
    start = trio.current_time()
    async with asking(handler(serve)) as session:
        with pytest.raises(RequestTimeout) as caught:
            await collect(session)
        assert caught.value.remote
        assert seen[-1] == "cancelled"
        assert trio.current_time() - start < 6


async def test_a_lost_link_is_a_network_error() -> None:
    serve, _ = serving([Accepted(), 1000.0, DONE])
    network = MemoryNetwork()
    async with asking(handler(serve), network) as session, ask(session, ATTEMPT) as events:
        await anext(events)
        network.kill(PROVIDER)
        with pytest.raises(NetworkError) as caught:
            await anext(events)
        assert not caught.value.remote


ACCEPTED = encode_event(Accepted())
BAD = {
    "garbage": [b"\xff\xff\xff"],
    "empty": [b""],
    "nothing": [],
    "no accepted": [encode_event(Chunk(0))],
    "accepted twice": [ACCEPTED, ACCEPTED],
    "no first chunk": [ACCEPTED, encode_event(Chunk(1))],
    "chunk twice": [ACCEPTED, encode_event(Chunk(0)), encode_event(Chunk(0))],
    "fee above the quote": [ACCEPTED, encode_event(Completed(Usage(), costing(101)))],
    "no end": [ACCEPTED, encode_event(Chunk(0))],
}


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD.keys())
async def test_a_bad_answer_is_held_against_the_peer(messages: list[bytes]) -> None:
    async with asking(saying(*messages)) as session:
        with pytest.raises(ValidationFailed) as caught:
            await collect(session)
        assert caught.value.peer_id == PROVIDER
        assert not caught.value.remote
        assert caught.value.try_next()
        await wait_all_tasks_blocked()
        assert session.idle


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_ANSWER", 100_000)

    async def answer(call: Call, message: bytes) -> None:
        await call.send(ACCEPTED)
        for index in range(1_000_000):
            await call.send(encode_event(Chunk(index, "x" * 1000)))

    async with asking(answer) as session:
        with pytest.raises(ValidationFailed, match="over 100000 bytes") as caught:
            await collect(session)
        assert caught.value.try_next()


async def test_a_bad_request_is_refused_and_the_session_goes_on() -> None:
    serve, seen = serving(ANSWER)
    async with asking(handler(serve)) as session:
        for bad in (b"", b"\xff" * 40):
            async with session.call(PROTOCOL, bad) as call:
                with pytest.raises(ValidationFailed) as caught:
                    await call.receive()
                assert caught.value.remote
                assert not caught.value.try_next()
        assert seen == []
        assert await collect(session) == ANSWER


async def test_an_input_that_cannot_travel_is_the_callers_fault() -> None:
    serve, seen = serving(ANSWER)
    bad = Attempt(ATTEMPT.request_id, 1, ATTEMPT.model_id, {"x": [math.nan]}, Amount(0), 5.0)
    async with asking(handler(serve)) as session:
        with pytest.raises(ValidationFailed) as caught:
            await collect(session, bad)
        assert not caught.value.try_next()
    assert seen == []


async def test_an_output_that_cannot_travel_is_the_models_failure() -> None:
    serve, _ = serving([Accepted(), Chunk(0, values={"x": [math.nan]}), DONE])
    async with asking(handler(serve)) as session:
        with pytest.raises(ModelFailed, match="cannot travel"):
            await collect(session)


async def test_a_bug_in_serving_is_told_as_a_failure_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    serve, _ = serving([Chunk(0)])
    async with asking(handler(serve)) as session:
        with pytest.raises(NetworkError, match="failed to serve"):
            await collect(session)
    assert "The provider said Chunk while the exchange was asked" in caplog.text


async def test_many_at_once_on_one_session_do_not_mix(autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def serve(attempt: Attempt, consumer: Consumer) -> AsyncGenerator[AsyncIterator[Event]]:
        async def play() -> AsyncGenerator[Event]:
            yield Accepted()
            await trio.sleep(attempt.number % 7)
            yield Chunk(0, str(attempt.number))
            yield Completed(Usage(), costing(0))

        yield play()

    texts = {}

    async def one(session: Session, number: int) -> None:
        attempt = Attempt(ATTEMPT.request_id, number, ATTEMPT.model_id, {}, Amount(0), 60.0)
        events = await collect(session, attempt)
        texts[number] = events[1]

    async with asking(handler(serve)) as session, trio.open_nursery() as nursery:
        for number in range(1, 101):
            nursery.start_soon(one, session, number)
    assert texts == {number: Chunk(0, str(number)) for number in range(1, 101)}
