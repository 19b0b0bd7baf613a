"""Models under a memory budget, each its own process: who rests, who returns, who is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import trio
from onnx import TensorProto as T

from llmesh.core.ids import ModelId
from llmesh.errors import ModelFailed, NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime import workers as workers_module
from llmesh.runtime.bundle import Bundle, read_bundle
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import WorkerSettings
from llmesh.runtime.workers import open_worker_runtime, probe_workers

from .conftest import ask, doubler, endless
from .test_workers import FOREVER, ONCE, workers

WITH_FLOATS: dict[str, Any] = {"x": [[1.0, 2.0, 3.0]]}
WITH_INTS: dict[str, Any] = {"x": [[1, 2, 3]]}


@pytest.fixture
async def bundles(tmp_path: Path) -> list[Bundle]:
    """Two doublers and one that never ends."""
    found = []
    models: list[onnx.ModelProto] = [doubler(), doubler(T.INT64), endless()]
    for number, model in enumerate(models):
        path = tmp_path / str(number) / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(model.SerializeToString())
        found.append(await read_bundle(path.parent))
    return found


@asynccontextmanager
async def room_for_one() -> AsyncIterator[Runtime]:
    """A worker without a model takes about 65 MB."""
    async with open_worker_runtime(WorkerSettings(threads=1), budget=110 << 20) as runtime:
        yield runtime


def resting(runtime: Runtime) -> list[ModelId]:
    return [status.model for status in runtime.workers() if status.resident == 0]


async def test_the_longest_unused_rests_and_returns_with_the_next_call(bundles: list[Bundle]) -> None:
    first, second, _ = bundles
    async with room_for_one() as runtime:
        await runtime.load(first)
        assert resting(runtime) == []
        await runtime.load(second)
        assert resting(runtime) == [first.id]
        for _ in range(2):
            await ask(runtime, first.id, WITH_FLOATS)
            assert resting(runtime) == [second.id]
            await ask(runtime, second.id, WITH_INTS)
            assert resting(runtime) == [first.id]
            assert len(workers()) == 1
        assert all(status.load_seconds > 0 for status in runtime.workers())


async def test_who_works_does_not_rest(bundles: list[Bundle]) -> None:
    first, _, busy = bundles
    async with room_for_one() as runtime:
        await runtime.load(first)
        await runtime.load(busy)
        async with runtime.infer(busy.id, FOREVER):
            with pytest.raises(NodeBusy, match="at work"):
                await ask(runtime, first.id, WITH_FLOATS)
        await ask(runtime, busy.id, ONCE)
        await ask(runtime, first.id, WITH_FLOATS)
        assert resting(runtime) == [busy.id]


async def test_a_load_finds_no_room_among_busy_ones(bundles: list[Bundle]) -> None:
    first, _, busy = bundles
    async with room_for_one() as runtime:
        await runtime.load(busy)
        async with runtime.infer(busy.id, FOREVER):
            with pytest.raises(NodeBusy):
                await runtime.load(first)
        assert [status.model for status in runtime.workers()] == [busy.id]
        await runtime.load(first)


async def test_with_room_for_all_none_rests(bundles: list[Bundle]) -> None:
    async with open_worker_runtime(WorkerSettings(threads=1)) as runtime:
        for bundle in bundles:
            await runtime.load(bundle)
        assert resting(runtime) == []
        async with runtime.infer(bundles[2].id, FOREVER):  # the others go on beside it
            await ask(runtime, bundles[0].id, WITH_FLOATS)
            assert [status.calls for status in runtime.workers()] == [0, 0, 1]


async def test_what_never_fits_is_too_large(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker_runtime(budget=40 << 20) as runtime:
        with pytest.raises(TooLarge, match="bytes of memory"):
            await runtime.load(bundles[0])
        monkeypatch.setattr("llmesh.runtime.hosted._BASE", 1 << 20)
        with pytest.raises(TooLarge):  # now only seen once it is loaded
            await runtime.load(bundles[0])
        assert workers() == []
        assert runtime.workers() == ()


async def test_calls_that_come_while_it_goes_to_rest_are_answered(bundles: list[Bundle]) -> None:
    first, second, _ = bundles
    async with room_for_one() as runtime:
        await runtime.load(first)
        await runtime.load(second)

        async def often(bundle: Bundle, values: dict[str, Any]) -> None:
            for _ in range(4):
                with trio.fail_after(20):
                    while True:
                        try:
                            await ask(runtime, bundle.id, values)
                            break
                        except NodeBusy:
                            await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(often, first, WITH_FLOATS)
            nursery.start_soon(often, second, WITH_INTS)
        assert len(workers()) == 1


async def test_the_sandbox_is_shown_and_can_be_required(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    able = await probe_workers()
    assert able.providers == ("cpu",)
    async with open_worker_runtime(WorkerSettings(require=able.level)) as runtime:
        await runtime.load(bundles[0])
        (status,) = runtime.workers()
        assert (status.level, status.provider, status.batch) == (able.level, "cpu", 8)
    if able.level == SandboxLevel.CONFINED:
        return
    async with open_worker_runtime(WorkerSettings(require=SandboxLevel.CONFINED)) as runtime:
        with pytest.raises(ValidationFailed, match="sandbox of level CONFINED"):
            await runtime.load(bundles[0])


async def test_below_the_required_sandbox_nothing_is_opened(
    bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = tmp_path / "weak"
    weak.mkdir()
    (weak / "weak.py").write_text(
        "from llmesh.runtime import landlock\nlandlock.abi = lambda: 0\n"
        "from llmesh.runtime.worker import main\nmain()\n"
    )
    command = workers_module.open_worker.__wrapped__.__globals__["_COMMAND"]  # type: ignore[attr-defined]
    monkeypatch.setattr("llmesh.runtime.process._COMMAND", (*command[:-2], str(weak / "weak.py")))
    async with open_worker_runtime(WorkerSettings(require=SandboxLevel.CONFINED)) as runtime:
        with pytest.raises(ValidationFailed, match="sandbox of level CONFINED; on this machine"):
            await runtime.load(bundles[0])
    async with open_worker_runtime(WorkerSettings(require=SandboxLevel.LIMITS)) as runtime:
        await runtime.load(bundles[0])
        assert runtime.workers()[0].level < SandboxLevel.CONFINED


async def test_a_probe_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmesh.runtime.process._COMMAND", ("/nowhere/python",))
    with pytest.raises(ModelFailed, match="No such file"):
        await probe_workers()
