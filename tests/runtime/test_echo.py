from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.errors import ModelFailed, ModelNotFound, NodeBusy, ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.echo import EchoRuntime
from llmesh.runtime.runtime import Runtime

MODEL = ModelId("0" * 64)
BUNDLE = Bundle(Path("/nowhere"), (), MODEL, "model.onnx")


async def echo(**settings: float) -> EchoRuntime:
    runtime = EchoRuntime(**settings)  # type: ignore[arg-type]
    same: Runtime = runtime
    assert (await same.load(BUNDLE)).id == MODEL
    return runtime


async def test_it_says_what_it_is_told() -> None:
    runtime = await echo()
    async with runtime.infer(MODEL, {"text": "one two"}) as answer:
        assert [event async for event in answer] == [
            Chunk(0, text="one two", values={"text": "one two"}),
            Usage(2, 2, 0.0),
        ]
    assert (runtime.started, runtime.running, runtime.cancelled) == (1, 0, 0)


async def test_it_streams_word_by_word(autojump_clock: MockClock) -> None:
    runtime = await echo(delay=2.0, words=1)
    start = trio.current_time()
    async with runtime.infer(MODEL, {"text": "one two  three"}) as answer:
        chunks = [event async for event in answer if isinstance(event, Chunk)]
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
    assert "".join(chunk.text for chunk in chunks) == "one two  three"
    assert [dict(chunk.values) for chunk in chunks] == [{}, {}, {}, {"text": "one two  three"}]
    assert trio.current_time() - start == 8.0


async def test_a_cancel_reaches_it(autojump_clock: MockClock) -> None:
    runtime = await echo(delay=1.0, words=1)
    with trio.move_on_after(1.5):
        async with runtime.infer(MODEL, {"text": "one two"}) as answer:
            assert runtime.running == 1
            async for _ in answer:
                pass
    assert (runtime.started, runtime.running, runtime.cancelled) == (1, 0, 1)


async def test_it_refuses(autojump_clock: MockClock) -> None:
    runtime = await echo(delay=1.0, capacity=1)
    for values in ({}, {"text": 1}, {"text": " "}):
        with pytest.raises(ValidationFailed):
            await runtime.infer(MODEL, values).__aenter__()
    with pytest.raises(ModelNotFound):
        await runtime.infer(ModelId("1" * 64), {"text": "x"}).__aenter__()
    async with runtime.infer(MODEL, {"text": "x"}) as answer:
        with pytest.raises(NodeBusy):
            await runtime.infer(MODEL, {"text": "x"}).__aenter__()
        await runtime.unload(MODEL)
        with pytest.raises(ModelFailed):
            await anext(answer)
    assert runtime.started == 1
