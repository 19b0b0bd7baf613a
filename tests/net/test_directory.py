"""Queries and answers over a session; a peer that answers wrongly or not at all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.directory import Cursor
from llmesh.core.ids import PeerId
from llmesh.core.query import Answer, Get, News, Query, Record, Search
from llmesh.errors import NetworkError, NodeBusy, ValidationFailed
from llmesh.net.call import Call, Handler
from llmesh.net.directory import PROTOCOL, ask, handler, lenient, tell
from llmesh.net.memory import MemoryNetwork
from llmesh.net.session import Session
from llmesh.net.sessions import open_sessions

A, B = PeerId("a"), PeerId("b")
RECORD = Record(b"x" * 1000, bytes(64))


@asynccontextmanager
async def session_with(answerer: Handler) -> AsyncGenerator[tuple[Session, MemoryNetwork]]:
    network = MemoryNetwork()
    async with (
        network.host(A) as a,
        network.host(B) as b,
        open_sessions(b, {PROTOCOL: answerer}),
        open_sessions(a, {}) as sessions,
    ):
        yield await sessions.to(B, b.addresses), network


async def test_a_query_gets_its_answers_in_order(autojump_clock: MockClock) -> None:
    asked: list[tuple[Query, PeerId]] = []

    async def serve(query: Query, peer: PeerId) -> Iterable[Answer]:
        asked.append((query, peer))
        return (Answer((RECORD,) * n, Cursor(1, n)) for n in range(3))

    async with session_with(handler(serve)) as (session, _), ask(session, Search("senti"), 5) as answers:
        got = [answer async for answer in answers]
    assert asked == [(Search("senti"), A)]
    assert got == [Answer((RECORD,) * n, Cursor(1, n)) for n in range(3)]


async def test_answers_are_made_as_they_are_taken(autojump_clock: MockClock) -> None:
    made = 0

    async def serve(query: Query, peer: PeerId) -> Iterable[Answer]:
        def answers() -> Iterable[Answer]:
            nonlocal made
            while made < 1000:
                made += 1
                yield Answer((RECORD,) * 40)

        return answers()

    async with session_with(handler(serve)) as (session, _):
        async with ask(session, Search(), 5) as answers:
            async for _answer in answers:
                await trio.sleep(1)
                break
        await trio.sleep(1)
    assert 1 <= made < 50


async def test_what_the_peer_refuses_is_raised_here(autojump_clock: MockClock) -> None:
    async def serve(query: Query, peer: PeerId) -> Iterable[Answer]:
        raise NodeBusy("Not now.", retry_after=2.0)

    async with session_with(handler(serve)) as (session, _):
        with pytest.raises(NodeBusy) as busy:
            await tell(session, News(), 5)
    assert busy.value.remote
    assert busy.value.retry_after == 2.0


async def test_garbage_is_refused_on_both_sides(autojump_clock: MockClock) -> None:
    async def rude(call: Call, message: bytes) -> None:
        await call.send(b"\xff\xff")

    async with session_with(rude) as (session, _):
        with pytest.raises(ValidationFailed) as wrong:
            await tell(session, Search(), 5)
        assert wrong.value.peer_id == B
        assert not wrong.value.remote

    async def never(query: Query, peer: PeerId) -> Iterable[Answer]:
        raise AssertionError("a malformed query is not served")

    async with session_with(handler(never)) as (session, _), session.call(PROTOCOL, b"\xff\xff") as call:
        with pytest.raises(ValidationFailed):
            await call.receive()


async def test_a_mute_or_lost_peer_is_left(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def mute(call: Call, message: bytes) -> None:
        await trio.sleep_forever()

    async with session_with(mute) as (session, network):
        with lenient(B, 3.0) as scope:
            await tell(session, Get(()), 60)
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(3.0)
        assert session.idle
        network.kill(B)
        with pytest.raises(NetworkError):
            await tell(session, Get(()), 60)
        with lenient(B, 3.0) as scope:
            await tell(session, Get(()), 60)
        assert not scope.cancelled_caught
