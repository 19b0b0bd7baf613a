"""The artifact protocol between two real sessions on the in-memory network, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from llmesh.core.ids import ModelId, PeerId
from llmesh.core.manifest import BLOCK, Block, Manifest, ManifestFile, block_digest
from llmesh.core.model import BundleFile
from llmesh.errors import ModelNotFound, NetworkError, NodeBusy, RequestTimeout, TooLarge, ValidationFailed
from llmesh.net.artifact import PIECE, PROTOCOL, Replica, Serve, handler, open_source
from llmesh.net.call import Call, Handler
from llmesh.net.memory import MemoryNetwork
from llmesh.net.session import Session
from llmesh.net.sessions import open_sessions
from llmesh.net.throttle import Throttle
from llmesh.wire.artifact import encode_fetch, encode_manifest, encode_want

TAKER, GIVER = PeerId("taker"), PeerId("giver")


def manifest_of(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        tuple(
            ManifestFile(
                BundleFile(path, len(data), sha256(data).hexdigest()),
                tuple(block_digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)),
            )
            for path, data in sorted(files.items())
        )
    )


FILES = {"a": random.Random(1).randbytes(BLOCK + 3 * PIECE), "b/c": b"x" * 10, "empty": b""}
MANIFEST = manifest_of(FILES)
MODEL = MANIFEST.model_id


@dataclass
class Copy:
    """A replica in memory."""

    manifest: Manifest = MANIFEST
    pause: float = 0.0

    async def read(self, block: Block) -> bytes:
        await trio.sleep(self.pause)
        if block not in set(self.manifest.blocks()):
            raise ValidationFailed("no such block")
        return FILES[block.path][block.offset : block.offset + BLOCK]


def serving(replica: Replica | None = None, log: list[object] | None = None) -> Serve:
    @asynccontextmanager
    async def serve(model: ModelId, peer: PeerId) -> AsyncGenerator[Replica]:
        if model != MODEL:
            raise ModelNotFound("not here")
        try:
            yield replica or Copy()
        finally:
            if log is not None:
                log.append(peer)

    return serve


@asynccontextmanager
async def asking(answer: Handler) -> AsyncGenerator[Session]:
    """A session whose peer answers the artifact protocol like this."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(network.host(TAKER))
        theirs = await stack.enter_async_context(network.host(GIVER))
        await stack.enter_async_context(open_sessions(theirs, {PROTOCOL: answer}))
        sessions = await stack.enter_async_context(open_sessions(ours, {}))
        yield await sessions.to(GIVER, theirs.addresses)


def honest(**options: object) -> Handler:
    return handler(serving(Copy(**options)), Throttle())  # type: ignore[arg-type]


async def test_manifest_and_blocks_come_in_the_order_of_asking() -> None:
    blocks = [Block("b/c", 0), Block("a", 1), Block("a", 0), Block("b/c", 0)]
    async with asking(honest()) as session, open_source(session, MODEL, Throttle()) as source:
        assert source.manifest == MANIFEST
        assert source.peer_id == GIVER
        for block in blocks:
            await source.ask(block, BLOCK)
        assert source.owes == 4
        for block in blocks:
            data = FILES[block.path][block.offset : block.offset + BLOCK]
            assert await source.receive() == (block, data)
        assert source.owes == 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, BLOCK]) | st.integers(0, BLOCK))
def test_a_block_of_any_size_arrives_whole(size: int) -> None:
    data = random.Random(size).randbytes(size)

    class Any(Copy):
        async def read(self, block: Block) -> bytes:
            return data

    async def run() -> None:
        answer = handler(serving(Any()), Throttle())
        async with asking(answer) as session, open_source(session, MODEL, Throttle()) as source:
            await source.ask(Block("a", 0), size)
            assert await source.receive() == (Block("a", 0), data)
            if size:
                await source.ask(Block("a", 0), size - 1)
                with pytest.raises(ValidationFailed, match="more than"):
                    await source.receive()

    trio.run(run)


async def test_leaving_stops_the_giver_in_the_middle_of_a_block(autojump_clock: MockClock) -> None:
    log: list[object] = []
    async with asking(handler(serving(log=log), Throttle(100_000))) as session:
        async with open_source(session, MODEL, Throttle()) as source:
            await source.ask(Block("a", 0), BLOCK)
            with trio.move_on_after(3):
                await source.receive()
        await wait_all_tasks_blocked()
        assert log == [TAKER]
        assert session.idle


async def test_refusals_are_raised_as_they_were() -> None:
    async with asking(honest()) as session:
        with pytest.raises(ModelNotFound) as caught:
            async with open_source(session, ModelId("f" * 64), Throttle()):
                pass
        assert caught.value.remote
        async with open_source(session, MODEL, Throttle()) as source:
            await source.ask(Block("nowhere", 0), BLOCK)
            with pytest.raises(ValidationFailed, match="no such block") as refused:
                await source.receive()
            assert refused.value.remote

    @asynccontextmanager
    async def busy(model: ModelId, peer: PeerId) -> AsyncGenerator[Replica]:
        raise NodeBusy("full", retry_after=5.0)
        yield Copy()

    async with asking(handler(busy, Throttle())) as session:
        with pytest.raises(NodeBusy) as full:
            async with open_source(session, MODEL, Throttle()):
                pass
        assert full.value.retry_after == 5.0


def saying(*messages: bytes, asked: int = 1) -> Handler:
    """A peer that says just that and goes when it was asked so often."""

    async def answer(call: Call, message: bytes) -> None:
        for data in messages:
            await call.send(data)
        for _ in range(asked):
            await call.receive()

    return answer


HUGE = Manifest((ManifestFile(BundleFile("a", (64 << 30) + 1, "0" * 64), (bytes(32),) * 65537),))


def in_pieces(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE] for start in range(0, len(data) + 1, PIECE)]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([b"nonsense"], "Manifest"),
        ([encode_manifest(manifest_of({"other": b"x"}))], "not of"),
        ([b"x" * (PIECE + 1)], "more than"),
        ([b"x" * PIECE] * 140, "more than"),
    ],
)
async def test_a_manifest_that_is_none_of_this_model_names_the_peer(
    messages: list[bytes], words: str
) -> None:
    async with asking(saying(*messages)) as session:
        with pytest.raises(ValidationFailed, match=words) as caught:
            async with open_source(session, MODEL, Throttle()):
                pass
        assert caught.value.peer_id == GIVER
        assert not caught.value.remote


async def test_a_model_beyond_all_bounds_is_too_large() -> None:
    async with asking(saying(*in_pieces(encode_manifest(HUGE)))) as session:
        with pytest.raises(TooLarge):
            async with open_source(session, HUGE.model_id, Throttle()):
                pass


async def test_a_peer_that_ends_the_call_breaks_the_protocol() -> None:
    answer = saying(*in_pieces(encode_manifest(MANIFEST)), encode_want(Block("a", 0)), asked=2)
    async with asking(answer) as session, open_source(session, MODEL, Throttle()) as source:
        await source.ask(Block("a", 0), BLOCK)
        await source.ask(Block("a", 1), BLOCK)
        await source.receive()  # what it is worth is for others to say
        with pytest.raises(ValidationFailed, match="ended") as caught:
            await source.receive()
        assert caught.value.peer_id == GIVER


async def test_a_mute_giver_is_given_up(autojump_clock: MockClock) -> None:
    async with asking(honest(pause=1e6)) as session, open_source(session, MODEL, Throttle()) as source:
        start = trio.current_time()
        await source.ask(Block("a", 0), BLOCK)
        with pytest.raises(NetworkError, match="nothing for 30 s") as caught:
            await source.receive()
        assert not caught.value.remote
        assert trio.current_time() - start == pytest.approx(30)


Taker = Callable[[Call], Awaitable[object]]


async def asks_nothing(call: Call) -> None:
    await trio.sleep_forever()


async def takes_nothing(call: Call) -> None:
    for _ in range(4):
        await call.send(encode_want(Block("a", 0)))
    await trio.sleep_forever()


async def drain(call: Call) -> None:
    while True:
        await call.receive()


@pytest.mark.parametrize(("taker", "words"), [(asks_nothing, "asked for"), (takes_nothing, "was taken")])
async def test_a_taker_that_does_nothing_is_sent_away(
    autojump_clock: MockClock, taker: Taker, words: str
) -> None:
    log: list[object] = []
    async with asking(handler(serving(log=log), Throttle())) as session, trio.open_nursery() as nursery:
        async with session.call(PROTOCOL, encode_fetch(MODEL)) as call:
            nursery.start_soon(taker, call)
            await trio.sleep(59)
            assert log == []
            await trio.sleep(2)
            assert log == [TAKER]
            with pytest.raises(RequestTimeout, match=words):
                await drain(call)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("message", [b"\xff", b"", encode_fetch(MODEL) + b"\xff"])
async def test_nonsense_is_refused(message: bytes) -> None:
    async with asking(honest()) as session, session.call(PROTOCOL, message) as call:
        with pytest.raises(ValidationFailed) as caught:
            await call.receive()
        assert caught.value.remote


@pytest.mark.parametrize("end", ["giving", "taking"])
async def test_either_end_may_cap_the_rate(autojump_clock: MockClock, end: str) -> None:
    giving, taking = (Throttle(100_000 if end == each else None) for each in ("giving", "taking"))
    answer = handler(serving(), giving)
    async with asking(answer) as session, open_source(session, MODEL, taking) as source:
        start = trio.current_time()
        await source.ask(Block("a", 0), BLOCK)
        await source.receive()
        assert trio.current_time() - start == pytest.approx(BLOCK / 100_000, rel=0.1)


async def test_small_calls_pass_a_transfer_that_nobody_takes_in(autojump_clock: MockClock) -> None:
    """Several transfers are stuck at their windows; the session's own must not be."""

    async def echo(call: Call, message: bytes) -> None:
        await call.send(message)

    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(network.host(TAKER))
        theirs = await stack.enter_async_context(network.host(GIVER))
        handlers = {PROTOCOL: honest(), "/echo": echo}
        await stack.enter_async_context(open_sessions(theirs, handlers))
        sessions = await stack.enter_async_context(open_sessions(ours, {}))
        session = await sessions.to(GIVER, theirs.addresses)
        for _ in range(6):
            source = await stack.enter_async_context(open_source(session, MODEL, Throttle()))
            for _ in range(4):
                await source.ask(Block("a", 0), BLOCK)
        await trio.sleep(1)
        async with session.call("/echo", b"quick") as call:
            with trio.fail_after(0.1):
                assert await call.receive() == b"quick"
