"""The node against workers that do not keep to the protocol, each played by a few lines of Python."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest
import trio

from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import MeshError, ModelFailed, TooLarge
from llmesh.runtime import answer as answer_module
from llmesh.runtime import hosted, process, workers
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.orders import GraphFacts, Infer, Loaded, Whole
from llmesh.runtime.pipe import encode_event, encode_order
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.sandbox import SandboxLevel

from .conftest import ask

STATE = Loaded(ModelInfo(ModelId(""), "raw-tensors"), SandboxLevel.CONFINED, "cpu", 1, 1 << 20)
LOADED = encode_event(0, STATE)
ACCEPTED = encode_event(1, Accepted())
READ = "import os, sys, time; os.read(0, 1 << 20);"


def say(*frames: bytes) -> str:
    return "".join(f"os.write(1, {frame!r});" for frame in frames)


FACTS = GraphFacts((), "fp32-strict")


@pytest.fixture(autouse=True)
def _unscanned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scan(*_: object) -> GraphFacts:
        return FACTS

    monkeypatch.setattr(workers, "scan_bundle_graph", scan)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def start(program: str) -> None:
        monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-S", "-c", program))

    return start


async def load_fault(runtime: Runtime) -> MeshError:
    with trio.fail_after(10), pytest.raises(MeshError) as caught:
        await runtime.load(await read_bundle(SENTIMENT_ANALYZER))
    return caught.value


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (READ + "os.write(1, b'\\xff' * 9)", "over the limit"),
        (READ + "os.write(1, b'\\0\\0\\0\\2{}')", "broke the protocol"),
        (READ + "os.write(1, b'\\0\\0\\0')", "exited with code 0"),
        (READ + say(ACCEPTED), "broke the protocol"),
        (READ + say(encode_event(5, STATE)), "broke the protocol"),
        (READ + "os.kill(os.getpid(), 11)", "SIGSEGV"),
        (READ + "sys.exit(3)", "exited with code 3"),
        (READ + "raise RuntimeError('ouch \\x1b[2J')", r"RuntimeError: ouch \x1b"),
        (READ + "os.close(1); time.sleep(60)", "closed its output"),
        ("import os; os.close(0); time = 1", "died while it loaded"),
    ],
)
async def test_a_load_that_goes_wrong(
    runtime: Runtime, play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    monkeypatch.setattr(process, "_END_SECONDS", 0.5)
    play(program)
    fault = await load_fault(runtime)
    assert isinstance(fault, ModelFailed)
    assert says in fault.message


async def test_a_load_that_hangs_has_an_end(
    runtime: Runtime, play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "_LOAD_SECONDS", 0.2)
    play(READ + "time.sleep(60)")
    assert "not loaded within" in (await load_fault(runtime)).message


async def test_a_worker_that_cannot_be_started(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COMMAND", ("/nowhere/python",))
    assert "No such file" in (await load_fault(runtime)).message


@pytest.mark.parametrize(
    "frames",
    [
        (ACCEPTED, ACCEPTED),
        (ACCEPTED, encode_event(1, Chunk(1))),
        (ACCEPTED, encode_event(9, Usage())),
        (ACCEPTED, LOADED),
        (ACCEPTED, b"\0\0\0\1x"),
        (ACCEPTED, b"\xff" * 8),
        (ACCEPTED, b"\0\0\0\x40half"),
    ],
    ids=["twice", "gap", "another's", "loaded again", "no frame", "giant", "half"],
)
async def test_an_answer_that_goes_wrong(
    runtime: Runtime, play: Callable[[str], None], frames: tuple[bytes, ...]
) -> None:
    play(READ + say(LOADED) + "os.read(0, 1 << 20);" + say(*frames))
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    with pytest.raises(ModelFailed):
        await ask(runtime, bundle.id, {"x": 1})


async def test_a_worker_that_never_accepts_is_killed_once_nobody_waits(
    runtime: Runtime, play: Callable[[str], None]
) -> None:
    play(READ + say(LOADED) + "os.read(0, 1 << 20); time.sleep(60)")
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    with trio.move_on_after(0.05):
        await ask(runtime, bundle.id, {"x": 1})
    play(
        READ
        + say(LOADED)
        + "os.read(0, 1 << 20);"
        + say(encode_event(2, Accepted()), encode_event(2, Usage()))
        + READ
    )
    with trio.fail_after(10):
        async with runtime.infer(bundle.id, {"x": 1}) as answer:
            assert [type(event) async for event in answer] == [Usage]


async def test_a_deaf_worker_is_replaced(runtime: Runtime, play: Callable[[str], None]) -> None:
    play(READ + "os.close(0);" + say(LOADED) + "time.sleep(60)")
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    with pytest.raises(ModelFailed):
        await ask(runtime, bundle.id, {"x": 1})


async def test_a_burst_waits_for_its_reader_and_the_loop_goes_on(
    runtime: Runtime, play: Callable[[str], None]
) -> None:
    flood = f"[os.write(1, frame) for frame in {[encode_event(1, Chunk(n)) for n in range(100)]!r}];"
    play(
        READ
        + say(LOADED)
        + "os.read(0, 1 << 20);"
        + say(ACCEPTED)
        + flood
        + say(encode_event(1, Usage()))
        + READ
    )
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    with trio.fail_after(10):
        async with runtime.infer(bundle.id, {"x": 1}) as answer:
            await trio.sleep(0.1)
            events = [event async for event in answer]
    assert [event.index for event in events if isinstance(event, Chunk)] == list(range(100))


async def test_who_does_not_read_loses_its_answer_and_others_run_on(
    runtime: Runtime, play: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_module, "BYTES_AHEAD", 3_000)
    flood = encode_event(1, Chunk(0, "x" * 2_000)), encode_event(1, Chunk(1, "y" * 2_000))
    rest = [encode_event(1, Chunk(n)) for n in range(2, 400)]
    other = encode_event(2, Whole({"y": 1}, Usage()))
    stopped = encode_event(1, Cancel())
    orders = len(encode_order(2, Infer({"x": 2})) + encode_order(1, Cancel()))
    play(
        READ
        + say(LOADED)
        + "os.read(0, 1 << 20);"
        + say(ACCEPTED, *flood)
        + f"[os.write(1, frame) for frame in {rest!r}];"
        + f"[os.read(0, 1) for _ in range({orders})];"
        + say(other, stopped)
        + READ
    )
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    with trio.fail_after(10):
        async with runtime.infer(bundle.id, {"x": 1}) as slow:
            assert (await ask(runtime, bundle.id, {"x": 2}))[0] == {"y": 1}
            with pytest.raises(TooLarge, match="waited to be read"):
                assert [event.index async for event in slow if isinstance(event, Chunk)] == [0, 1]


async def test_noise_on_stderr_never_blocks_and_its_end_is_logged(
    runtime: Runtime, play: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=process.__name__)
    play(READ + "os.write(2, b'x' * 1_000_000 + b'\\nlast words');" + say(LOADED) + READ)
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    await runtime.load(bundle)
    await runtime.unload(bundle.id)
    assert "last words" in caplog.text
    assert len(caplog.text) < 10_000
