"""The session over links in memory: what it promises to both sides, and what a rude peer gets."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from llmesh.core.credit import CALL_WINDOW, OVERHEAD
from llmesh.core.frames import (
    Cancel,
    Credit,
    End,
    Failed,
    Frame,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
)
from llmesh.core.framing import HEADER, Splitter
from llmesh.core.ids import PeerId
from llmesh.errors import (
    ERRORS,
    MeshError,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
    TooLarge,
    ValidationFailed,
    error_from_code,
)
from llmesh.net import call as call_module
from llmesh.net import session as session_module
from llmesh.net.call import Call, Handler
from llmesh.net.host import Link
from llmesh.net.incoming import MAX_CALLS
from llmesh.net.memory import MemoryNetwork
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions, open_sessions
from llmesh.wire import session_pb2 as pb
from llmesh.wire.session import decode, encode

A, B, R = PeerId("A"), PeerId("B"), PeerId("R")


async def echo(call: Call, message: bytes) -> None:
    await call.send(message)


async def hang(_call: Call, _message: bytes) -> None:
    await trio.sleep_forever()


@dataclass
class Pair:
    network: MemoryNetwork
    ours: Session
    theirs: Sessions

    @property
    def their(self) -> Session:
        session = self.theirs.get(A)
        assert session is not None
        return session


@asynccontextmanager
async def pair(handlers: Mapping[str, Handler], network: MemoryNetwork | None = None) -> AsyncIterator[Pair]:
    """A asks, B serves."""
    network = network or MemoryNetwork()
    async with (
        network.host(A) as a,
        network.host(B) as b,
        open_sessions(b, handlers) as theirs,
        open_sessions(a, {"/echo": echo}) as ours,
    ):
        yield Pair(network, await ours.to(B, b.addresses), theirs)


async def ask(session: Session, protocol: str, message: bytes = b"", timeout: float | None = None) -> bytes:
    async with session.call(protocol, message, timeout=timeout) as call:
        answer = await call.receive()
        with pytest.raises(trio.EndOfChannel):
            await call.receive()
    return answer


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 131_000, 131_001, 262_000, 600_000, 5_000_000])
async def test_a_message_of_any_size_comes_back(autojump_clock: MockClock, size: int) -> None:
    message = random.Random(size).randbytes(size)
    async with pair({"/echo": echo}) as p:
        assert await ask(p.ours, "/echo", message) == message
        assert p.ours.idle
        assert p.their.idle


async def test_each_side_knows_the_other(autojump_clock: MockClock) -> None:
    async with pair({}, MemoryNetwork(delay=0.05)) as p:
        await trio.sleep(1)
        assert (p.ours.peer_id, p.their.peer_id) == (B, A)
        assert p.ours.hello.agent.startswith("llmesh/")
        assert p.ours.hello.observed_address == p.their.remote_address
        assert p.ours.hello.addresses == (p.ours.remote_address,)
        assert p.ours.round_trip == pytest.approx(0.1)
        assert p.their.round_trip == pytest.approx(0.1)


async def test_either_side_may_ask(autojump_clock: MockClock) -> None:
    async with pair({"/echo": echo}) as p:
        assert await ask(p.ours, "/echo", b"from A") == b"from A"
        assert await ask(p.their, "/echo", b"from B") == b"from B"


async def test_many_calls_at_once_get_their_own_answers(autojump_clock: MockClock) -> None:
    async with pair({"/echo": echo}, MemoryNetwork(seed=1, delay=0.02, jitter=0.02, loss=0.1)) as p:
        answers: dict[int, bytes] = {}

        async def one(n: int) -> None:
            answers[n] = await ask(p.ours, "/echo", b"%d" % n * (1 + n * 60))

        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(one, n)
        assert answers == {n: b"%d" % n * (1 + n * 60) for n in range(200)}
        assert p.ours.idle
        assert p.their.idle


async def test_messages_of_one_call_keep_their_order(autojump_clock: MockClock) -> None:
    sizes = [random.Random(3).choice([0, 10, 20_000, 70_000]) for _ in range(100)]

    async def stream(call: Call, _message: bytes) -> None:
        for n, size in enumerate(sizes):
            await call.send(b"%d:" % n + b"." * size)

    async with pair({"/stream": stream}) as p, p.ours.call("/stream", b"") as call:
        for n, size in enumerate(sizes):
            assert await call.receive() == b"%d:" % n + b"." * size
        with pytest.raises(trio.EndOfChannel):
            await call.receive()


async def test_a_conversation_goes_both_ways(autojump_clock: MockClock) -> None:
    async def upper(call: Call, message: bytes) -> None:
        while message != b"stop":
            await call.send(message.upper())
            message = await call.receive()

    async with pair({"/upper": upper}) as p, p.ours.call("/upper", b"one") as call:
        assert await call.receive() == b"ONE"
        await call.send(b"two")
        assert await call.receive() == b"TWO"
        await call.send(b"stop")
        with pytest.raises(trio.EndOfChannel):
            await call.receive()
        with pytest.raises(NetworkError):
            await call.send(b"too late")


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*ERRORS, 9999])
async def test_a_failure_arrives_with_its_code(autojump_clock: MockClock, code: int) -> None:
    async def fail(call: Call, _message: bytes) -> None:
        await call.send(b"first")
        raise error_from_code(code, "Because.", remote=False, retry_after=2.5)

    async with pair({"/fail": fail}) as p, p.ours.call("/fail", b"") as call:
        assert await call.receive() == b"first"
        for _ in range(2):
            with pytest.raises(MeshError) as caught:
                await call.receive()
        with pytest.raises(MeshError):
            await call.send(b"more")
        error = caught.value
        assert type(error) is type(error_from_code(code, ""))
        assert (error.code, error.message, error.retry_after) == (code, "Because.", 2.5)
        assert (error.remote, error.peer_id) == (True, B)
        assert p.ours.idle
        assert p.their.idle


async def test_a_bug_in_a_handler_is_logged_once_and_tells_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_call: Call, _message: bytes) -> None:
        raise ValueError("secret")

    async with pair({"/broken": broken, "/echo": echo}) as p:
        with pytest.raises(NetworkError) as caught:
            await ask(p.ours, "/broken")
        assert caught.value.remote
        assert "secret" not in str(caught.value)
        assert await ask(p.ours, "/echo", b"alive") == b"alive"
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 1


async def test_an_unknown_protocol_is_refused(autojump_clock: MockClock) -> None:
    async with pair({}) as p:
        with pytest.raises(NodeUnreachable, match="/what") as caught:
            await ask(p.ours, "/what")
        assert caught.value.try_next()


async def test_the_openers_timeout_stops_the_handler(autojump_clock: MockClock) -> None:
    stopped: list[float] = []

    async def slow(call: Call, _message: bytes) -> None:
        try:
            await trio.sleep(100)
        finally:
            stopped.append(trio.current_time())

    async with pair({"/slow": slow}) as p:
        start = trio.current_time()
        with pytest.raises(RequestTimeout) as caught:
            await ask(p.ours, "/slow", timeout=0.05)
        assert caught.value.remote
        assert stopped == [pytest.approx(start + 0.05)]
        assert p.their.idle


async def test_leaving_a_call_stops_its_handler(autojump_clock: MockClock) -> None:
    started, stopped = trio.Event(), trio.Event()

    async def work(call: Call, _message: bytes) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with pair({"/work": work}) as p:
        with trio.move_on_after(1):
            async with p.ours.call("/work", b""):
                await started.wait()
                await trio.sleep_forever()
        await stopped.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert p.ours.idle
        assert p.their.idle


async def test_calls_beyond_the_cap_are_refused_at_once(autojump_clock: MockClock) -> None:
    async with pair({"/hang": hang}) as p, trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS):
            nursery.start_soon(ask, p.ours, "/hang")
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        with pytest.raises(NodeBusy) as caught:
            await ask(p.ours, "/hang")
        assert caught.value.retry_after == 1.0
        assert trio.current_time() == start
        nursery.cancel_scope.cancel()


async def test_messages_have_a_largest_size(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair({"/echo": echo}) as p:
        monkeypatch.setattr(session_module, "MAX_MESSAGE", 100_000)
        with pytest.raises(TooLarge):
            await ask(p.ours, "/echo", b"x" * 100_001)
        monkeypatch.undo()
        monkeypatch.setattr(call_module, "MAX_MESSAGE", 100_000)
        with pytest.raises(TooLarge) as caught:
            await ask(p.ours, "/echo", b"x" * 200_000)
        assert caught.value.remote
        assert await ask(p.ours, "/echo", b"x" * 100_000) == b"x" * 100_000


async def test_unfinished_messages_have_a_common_budget(autojump_clock: MockClock) -> None:
    async with pair({"/echo": echo}) as p:
        p.their._budget.left = 300_000
        p.network.weather = type(p.network.weather)(delay=0.1)
        outcomes: list[str] = []

        async def one() -> None:
            try:
                outcomes.append("ok" if await ask(p.ours, "/echo", b"x" * 250_000) else "")
            except NodeBusy:
                outcomes.append("busy")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert "busy" in outcomes
        assert p.their._budget.left == 300_000


# --- holding back -----------------------------------------------------------------------------


async def test_a_slow_reader_holds_back_only_its_own_answer(autojump_clock: MockClock) -> None:
    sent = 0

    async def flood(call: Call, _message: bytes) -> None:
        nonlocal sent
        for _ in range(1000):
            await call.send(b"x" * 60_000)
            sent += 60_000

    async with pair({"/flood": flood, "/echo": echo}) as p, p.ours.call("/flood", b"") as slow:
        await trio.sleep(1)
        assert sent <= CALL_WINDOW
        start = trio.current_time()
        for _ in range(100):
            assert await ask(p.ours, "/echo", b"quick") == b"quick"
        assert trio.current_time() == start
        for _ in range(20):
            await slow.receive()
            await trio.sleep(0.05)
        assert sent <= CALL_WINDOW + 20 * 60_000


async def test_forty_slow_readers_hold_back_nobody(autojump_clock: MockClock) -> None:
    async def flood(call: Call, _message: bytes) -> None:
        while True:
            await call.send(b"x" * 60_000)

    async def slow(session: Session) -> None:
        async with session.call("/flood", b""):
            await trio.sleep_forever()

    async with pair({"/flood": flood, "/echo": echo}) as p, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(slow, p.ours)
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(p.ours, "/echo", b"x" * 600_000) == b"x" * 600_000
        nursery.cancel_scope.cancel()


async def test_empty_messages_cost_credit_too(autojump_clock: MockClock) -> None:
    sent = 0

    async def flood(call: Call, _message: bytes) -> None:
        nonlocal sent
        while True:
            await call.send(b"")
            sent += 1

    async with pair({"/flood": flood}) as p, p.ours.call("/flood", b""):
        await trio.sleep(1)
        assert sent == CALL_WINDOW // OVERHEAD


async def test_a_handler_that_does_not_read_holds_back_the_opener(autojump_clock: MockClock) -> None:
    async with pair({"/hang": hang, "/echo": echo}) as p, p.ours.call("/hang", b"") as call:
        sent = 0
        with trio.move_on_after(1):
            while True:
                await call.send(b"x" * 10_000)
                sent += 10_000
        assert sent <= CALL_WINDOW
        assert await ask(p.ours, "/echo", b"quick") == b"quick"


# --- the end of a session ---------------------------------------------------------------------


async def test_a_frozen_peer_is_dead_within_fifteen_seconds(autojump_clock: MockClock) -> None:
    async def flood(call: Call, message: bytes) -> None:
        await call.receive()

    async with pair({"/hang": hang}) as p:
        start = trio.current_time()
        failures: list[float] = []

        async def waits_for_answer() -> None:
            with pytest.raises(NetworkError) as caught:
                await ask(p.ours, "/hang")
            assert not caught.value.remote
            failures.append(trio.current_time() - start)

        async def waits_for_credit() -> None:
            with pytest.raises(NetworkError):
                await ask(p.ours, "/hang", b"x" * 1_000_000)
            failures.append(trio.current_time() - start)

        async def waits_for_credit_of_the_session() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(waits_for_credit)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_for_answer)
            await trio.sleep(0.1)
            p.network.freeze(B)
            nursery.start_soon(waits_for_credit_of_the_session)
        assert len(failures) == 11
        assert max(failures) <= 15.2
        assert p.ours.spent
        with pytest.raises(NetworkError):
            await ask(p.ours, "/hang")


async def test_a_killed_peer_fails_its_calls_at_once(autojump_clock: MockClock) -> None:
    async with pair({"/hang": hang}) as p, trio.open_nursery() as nursery:

        async def asks() -> None:
            with pytest.raises(NetworkError):
                await ask(p.ours, "/hang")

        nursery.start_soon(asks)
        await trio.sleep(1)
        start = trio.current_time()
        p.network.kill(B)
        await trio.testing.wait_all_tasks_blocked()
        assert p.ours.spent
        assert trio.current_time() == start


async def test_silence_alone_keeps_a_session(autojump_clock: MockClock) -> None:
    async with pair({"/echo": echo}) as p:
        await trio.sleep(600)
        assert await ask(p.ours, "/echo", b"still") == b"still"


async def test_a_short_freeze_loses_nothing(autojump_clock: MockClock) -> None:
    async with pair({"/echo": echo}) as p, trio.open_nursery() as nursery:
        p.network.freeze(B)
        nursery.start_soon(ask, p.ours, "/echo", b"x" * 600_000)
        await trio.sleep(9)
        p.network.thaw(B)
    assert not p.ours._calls


async def test_closing_fails_calls_on_both_sides(autojump_clock: MockClock) -> None:
    cancelled = trio.Event()

    async def work(_call: Call, _message: bytes) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with pair({"/work": work}) as p, p.ours.call("/work", b"") as call:
        await trio.sleep(1)
        p.ours.close()
        with pytest.raises(NetworkError, match="closed"):
            await call.receive()
        await cancelled.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert p.theirs.get(A) is None


async def test_a_session_whose_numbers_are_used_up_is_replaced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair({"/echo": echo}) as p:
        monkeypatch.setattr(session_module, "MAX_ID", 3)
        assert await ask(p.ours, "/echo", b"1") == b"1"
        assert await ask(p.ours, "/echo", b"3") == b"3"
        assert p.ours.spent
        with pytest.raises(NetworkError):
            await ask(p.ours, "/echo", b"5")


# --- rude peers -------------------------------------------------------------------------------

HELLO = Hello("rude", "", ())


@asynccontextmanager
async def rude(network: MemoryNetwork, greet: bool = True) -> AsyncIterator[tuple[Link, Sessions]]:
    """R speaks by hand to B, which serves; A behaves, and must notice nothing."""
    handlers = {"/echo": echo, "/hang": hang}
    async with (
        network.host(A) as a,
        network.host(B) as b,
        network.host(R) as r,
        open_sessions(b, handlers) as sessions,
        open_sessions(a, {}) as others,
    ):
        other = await others.to(B, b.addresses)
        link = await r.dial(B, b.addresses)
        if greet:
            await link.write(encode(HELLO))
        yield link, sessions
        assert await ask(other, "/echo", b"unharmed") == b"unharmed"
        assert other.idle


async def closed_after(link: Link) -> float:
    """Seconds until the other side has closed."""
    start = trio.current_time()
    with suppress(NetworkError):
        while True:
            await link.read()
    return trio.current_time() - start


def frames(*items: Frame) -> bytes:
    return b"".join(map(encode, items))


def open_(call: int, protocol: str = "/hang", payload: bytes = b"", more: bool = False) -> Open:
    return Open(call, protocol, 0, payload, more)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        (1 << 20 | 1).to_bytes(4, "big"),
        b"\0\0\0\4\xff\xff\xff\xff",
        frames(HELLO),
        frames(Message(1, b"x", False)),
        frames(End(1)),
        frames(Cancel(1)),
        frames(Credit(1, 1)),
        frames(Credit(0, 1)),
        frames(Failed(1, 1001, "", None)),
        frames(Message(2, b"x", False)),
        frames(End(2)),
        frames(open_(2)),
        frames(open_(3), open_(3)),
        frames(open_(3), open_(1)),
        frames(open_(1), Credit(1, 1)),
        frames(open_(1), Failed(1, 1001, "", None)),
        frames(open_(1), *[Message(1, b"x" * 60_000, False)] * 18),
        frames(open_(1), *[Message(1, b"", True)] * 9000),
        encode(HELLO)[:HEADER] + b"\x08\x04\x10" + b"\x80" * 60,
    ],
    ids=lambda data: repr(bytes(data[:24])),
)
async def test_breaking_the_protocol_costs_the_session(
    autojump_clock: MockClock, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with rude(MemoryNetwork()) as (link, sessions):
        for start in range(0, len(data), 60_000):
            await link.write(data[start : start + 60_000])
        assert await closed_after(link) < 1
        assert sessions.get(R) is None
        lines = [record for record in caplog.records if "breaks the protocol" in record.message]
        assert len(lines) == 1
        assert "R" in lines[0].message


async def test_speaking_before_hello_costs_the_session(autojump_clock: MockClock) -> None:
    async with rude(MemoryNetwork(), greet=False) as (link, sessions):
        await link.write(frames(open_(1)))
        assert await closed_after(link) < 1
        assert sessions.get(R) is None


async def test_no_hello_in_ten_seconds_costs_the_session(autojump_clock: MockClock) -> None:
    async with rude(MemoryNetwork(), greet=False) as (link, sessions):
        assert await closed_after(link) == pytest.approx(10)
        assert sessions.get(R) is None


@pytest.mark.parametrize("data", [b"", encode(HELLO)[:3], encode(open_(1, payload=b"x" * 100))[:50]])
async def test_half_a_frame_and_silence_costs_the_session(autojump_clock: MockClock, data: bytes) -> None:
    async with rude(MemoryNetwork()) as (link, _):
        await link.write(data)
        assert await closed_after(link) == pytest.approx(15)


async def test_a_peer_that_asks_and_never_reads_is_dropped(autojump_clock: MockClock) -> None:
    """What it makes us answer stays bounded, and it does not take for ever to notice."""

    async def pester(link: Link) -> None:
        for call in range(1, 1 << 20, 200):
            questions = [open_(number, "/" + "x" * 120) for number in range(call, call + 200, 2)]
            await link.write(frames(*questions))

    async with rude(MemoryNetwork()) as (link, sessions):
        start = trio.current_time()
        with pytest.raises(NetworkError):
            await pester(link)
        assert trio.current_time() - start <= 15
        assert sessions.get(R) is None


async def talk(link: Link, data: bytes) -> list[Frame]:
    """What comes back, from the opening hello on, up to the PONG that answers the last byte."""
    splitter, heard = Splitter(), []
    await link.write(data + encode(Ping()))
    while not any(isinstance(frame, Pong) for frame in heard):
        heard += [frame for body in splitter.feed(await link.read()) if (frame := decode(body))]
    return [frame for frame in heard if not isinstance(frame, Hello | Ping | Pong)]


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\2\x08\x63",
        frames(Pong(), Pong()),
        frames(open_(7, "/none"), Message(7, b"late", False), Cancel(7), End(7), Credit(7, 5)),
        frames(open_(1), Cancel(1), Message(1, b"late", False), Cancel(1), End(5 - 4)),
        frames(open_(1, "/echo"), End(1)),
    ],
    ids=lambda data: repr(bytes(data[:24])),
)
async def test_what_is_odd_but_allowed_keeps_the_session(autojump_clock: MockClock, data: bytes) -> None:
    async with rude(MemoryNetwork()) as (link, sessions):
        await talk(link, data)
        await trio.testing.wait_all_tasks_blocked()
        assert sessions.get(R) is not None


async def test_unknown_fields_of_a_frame_are_ignored(autojump_clock: MockClock) -> None:
    wire = pb.Frame(kind="OPEN", call=1, protocol="/echo", payload=b"hi").SerializeToString()
    newer = wire + b"\x9a\x06\x03new"
    async with rude(MemoryNetwork()) as (link, _):
        await link.write(len(newer).to_bytes(4, "big") + newer)
        await trio.sleep(1)
        assert await talk(link, b"") == [Message(1, b"hi", False), End(1)]


async def test_an_opener_that_ends_in_the_middle_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rude(MemoryNetwork()) as (link, _):
        await link.write(frames(open_(1, "/echo", b"half", more=True), End(1)))
        await trio.sleep(1)
        (failed,) = await talk(link, b"")
        assert isinstance(failed, Failed)
        assert failed.code == ValidationFailed.code
    assert not [record for record in caplog.records if record.exc_info]


# --- breaking it on purpose -------------------------------------------------------------------


async def test_three_thousand_random_cancels_harm_no_other_call(autojump_clock: MockClock) -> None:
    rng = random.Random(7)
    network = MemoryNetwork(seed=7, delay=0.005, jitter=0.005)

    async def answer(call: Call, message: bytes) -> None:
        await trio.sleep(rng.uniform(0, 0.02))
        await call.send(message[::-1])

    async with pair({"/answer": answer}, network) as p:
        done, cancelled = 0, 0

        async def one(size: int, patience: float) -> None:
            nonlocal done, cancelled
            message = rng.randbytes(size)
            with trio.move_on_after(patience) as scope:
                assert await ask(p.ours, "/answer", message) == message[::-1]
            if scope.cancelled_caught:
                cancelled += 1
            else:
                done += 1

        async def client() -> None:
            while cancelled < 3000:
                size = 200_000 if rng.random() < 0.02 else 100
                await one(size, rng.uniform(0, 0.05) if rng.random() < 0.8 else 60)

        session = p.ours
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(client)
        await trio.sleep(1)
        assert cancelled >= 3000
        assert done > 500
        assert session is not None
        assert not session.spent
        assert session.idle
        assert p.their.idle
        assert session._sender.window.left > 0
        assert await ask(session, "/answer", b"abc") == b"cba"
