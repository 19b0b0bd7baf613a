"""The runtime with real worker processes: answers, cancels, deaths, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio

from llmesh.core.encoding import Tensor
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelFailed, ModelNotFound, NodeBusy, TooLarge, ValidationFailed
from llmesh.runtime import calls as calls_module
from llmesh.runtime.bundle import Bundle, read_bundle
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.workers import open_worker_runtime

from .conftest import Save, ask, doubler, endless, external, giant

GOOD = {"text": "很棒的产品！"}
FOREVER = {"times": 1 << 62, "x": [0, 0, 0]}
ONCE = {"times": 1, "x": [1, 2, 3]}


def workers() -> list[psutil.Process]:
    """Live workers of this process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "llmesh.runtime.worker" in child.cmdline()
    ]


async def loaded(runtime: Runtime, path: Path) -> Bundle:
    bundle = await read_bundle(path)
    info = await runtime.load(bundle)
    assert info.id == bundle.id
    return bundle


async def test_the_golden_outputs_through_a_worker(runtime: Runtime) -> None:
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    info = await runtime.load(bundle)
    assert (info.task, info.labels) == ("text-classification", ("negative", "positive"))
    assert [str(spec) for spec in info.inputs] == ["text: string[]"]
    golden = json.loads((SENTIMENT_ANALYZER / "golden.json").read_text())
    for case in golden["cases"]:
        output, usage = await ask(runtime, bundle.id, {"text": case["input"]})
        assert output["label"] == case["label"]
        assert output["score"] == pytest.approx(case["score"], abs=golden["tolerance"]["score"])
        assert usage.input_tokens > 2
        assert usage.compute_ms > 0
    with pytest.raises(ValidationFailed, match="161 tokens; the model takes 160"):
        await ask(runtime, bundle.id, {"text": "好" * 159})
    assert await runtime.load(bundle) == info
    assert len(workers()) == 1


async def test_a_bare_graph_takes_tensors_by_name(runtime: Runtime, save: Save) -> None:
    folder = save(external("w.bin"))
    (folder / "w.bin").write_bytes(np.array([1, 2, 3], "<f4").tobytes())
    bundle = await loaded(runtime, folder / "model.onnx")
    for x in (Tensor("float32", (1, 3), bytes(12)), [[0, 0, 0]]):
        output, usage = await ask(runtime, bundle.id, {"x": x})
        assert output == {"y": Tensor("float32", (1, 3), np.array([1, 2, 3], "<f4").tobytes())}
        assert usage.input_tokens == 0
    with pytest.raises(ValidationFailed, match=r"takes x: float32\[n, 3\]; x has the shape \[2\]"):
        await ask(runtime, bundle.id, {"x": [1, 2]})
    large = Tensor("float32", (1_000_000, 3), os.urandom(12_000_000))
    output, _ = await ask(runtime, bundle.id, {"x": large})
    assert isinstance(output["y"], Tensor)
    assert output["y"].shape == large.shape
    with pytest.raises(TooLarge):
        await ask(runtime, bundle.id, {"x": Tensor("uint8", (1 << 26,), bytes(1 << 26))})


async def test_what_is_not_loaded_is_not_found(runtime: Runtime) -> None:
    with pytest.raises(ModelNotFound):
        await ask(runtime, ModelId("0" * 64), GOOD)


async def test_a_model_that_cannot_be_opened_leaves_nothing(runtime: Runtime, save: Save, demo: Path) -> None:
    broken = doubler()
    broken.graph.node[0].op_type = "Nope"
    with pytest.raises(ValidationFailed, match="Nope"):
        await runtime.load(await read_bundle(save(broken)))
    (demo / "tokenizer.json").write_text("{")
    with pytest.raises(ValidationFailed, match=r"tokenizer\.json"):
        await runtime.load(await read_bundle(demo))
    assert workers() == []


async def test_a_cancelled_load_leaves_nothing(runtime: Runtime) -> None:
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    for seconds in (0.0, 0.05):
        with trio.move_on_after(seconds) as scope:
            await runtime.load(bundle)
        assert scope.cancelled_caught
        assert workers() == []
        with pytest.raises(ModelNotFound):
            await ask(runtime, bundle.id, GOOD)
    await runtime.load(bundle)
    await ask(runtime, bundle.id, GOOD)


async def test_two_loads_of_one_model_start_one_worker(runtime: Runtime) -> None:
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(runtime.load, bundle)
    assert len(workers()) == 1


async def test_unloading(runtime: Runtime, save: Save) -> None:
    bundle = await loaded(runtime, save(endless()))
    async with runtime.infer(bundle.id, FOREVER) as answer:
        await runtime.unload(bundle.id)
        with pytest.raises(ModelFailed, match="unloaded"):
            await anext(answer)
    assert workers() == []
    await runtime.unload(bundle.id)
    with pytest.raises(ModelNotFound):
        await ask(runtime, bundle.id, ONCE)
    await runtime.load(bundle)
    await ask(runtime, bundle.id, ONCE)


async def test_an_endless_graph_is_stopped_and_its_worker_goes_on(runtime: Runtime, save: Save) -> None:
    bundle = await loaded(runtime, save(endless()))
    (worker,) = workers()
    for _ in range(3):
        with trio.move_on_after(0.05) as scope:
            async with runtime.infer(bundle.id, FOREVER) as answer:
                await anext(answer)
        assert scope.cancelled_caught
    await ask(runtime, bundle.id, ONCE)
    assert workers() == [worker]


async def test_acceptance_does_not_wait_for_the_run_before(runtime: Runtime, save: Save) -> None:
    bundle = await loaded(runtime, save(endless()))
    with trio.fail_after(5):
        async with runtime.infer(bundle.id, FOREVER), runtime.infer(bundle.id, ONCE) as second:
            with pytest.raises(ValidationFailed):
                await ask(runtime, bundle.id, {"times": 1})
            with trio.move_on_after(0.1) as waited:
                await anext(second)
            assert waited.cancelled_caught


async def test_a_worker_that_does_not_stop_is_killed_and_only_that_call_lost(
    runtime: Runtime, save: Save
) -> None:
    bundle = await loaded(runtime, save(giant()))
    (worker,) = workers()
    large = {"x": Tensor("float32", (2_000, 2_000), bytes(16_000_000))}
    answers: list[Tensor] = []

    async def small() -> None:
        output, _ = await ask(runtime, bundle.id, {"x": [[1, 1], [1, 1]]})
        assert isinstance(output["y"], Tensor)
        answers.append(output["y"])

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with runtime.infer(bundle.id, large) as answer:
                nursery.start_soon(small)
                scope.deadline = trio.current_time() + 0.3
                await anext(answer)
        assert answers == []
    assert np.frombuffer(answers[0].data, "<f4").tolist() == [2.0**39] * 4
    assert worker not in workers()


async def test_two_hundred_random_cancels_leave_the_worker_healthy(runtime: Runtime) -> None:
    bundle = await loaded(runtime, SENTIMENT_ANALYZER)
    (worker,) = workers()
    chance = random.Random(7)
    done = 0

    async def cancelled(after: float) -> None:
        nonlocal done
        with trio.move_on_after(after):
            await ask(runtime, bundle.id, GOOD)
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(cancelled, chance.random() * 0.1)
            await trio.sleep(chance.random() * 0.002)
    output, _ = await ask(runtime, bundle.id, GOOD)
    assert output["label"] == "positive"
    assert workers() == [worker]
    assert 0 < done <= 200


async def test_many_at_once_get_their_own_answers(runtime: Runtime) -> None:
    bundle = await loaded(runtime, SENTIMENT_ANALYZER)
    golden = json.loads((SENTIMENT_ANALYZER / "golden.json").read_text())
    answered = 0

    async def one(case: dict[str, Any]) -> None:
        nonlocal answered
        output, usage = await ask(runtime, bundle.id, {"text": case["input"]})
        assert output["label"] == case["label"]
        assert output["score"] == pytest.approx(case["score"], abs=0.02)
        assert usage.input_tokens > 2
        answered += 1

    async def bad() -> None:
        with pytest.raises(ValidationFailed):
            await ask(runtime, bundle.id, {"text": ""})

    async with trio.open_nursery() as nursery:
        for case in golden["cases"] * 4:
            nursery.start_soon(one, case)
            nursery.start_soon(bad)
    assert answered == 4 * len(golden["cases"])


async def test_a_killed_worker_fails_its_call_and_comes_back(runtime: Runtime, save: Save) -> None:
    bundle = await loaded(runtime, save(endless()))
    (first,) = workers()
    with trio.fail_after(5):
        forever, once = runtime.infer(bundle.id, FOREVER), runtime.infer(bundle.id, ONCE)
        async with forever as answer, once as waiting:
            first.send_signal(signal.SIGKILL)
            with pytest.raises(ModelFailed, match="SIGKILL"):
                await anext(answer)
            assert [type(event) async for event in waiting] == [Chunk, Usage]
    (second,) = workers()
    second.send_signal(signal.SIGKILL)
    await ask(runtime, bundle.id, ONCE)
    assert workers()[0].pid not in (first.pid, second.pid)


async def test_a_model_that_is_gone_from_disk_fails_its_calls_not_the_runtime(
    runtime: Runtime, save: Save
) -> None:
    folder = save(doubler())
    bundle = await loaded(runtime, folder)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    workers()[0].send_signal(signal.SIGKILL)
    with pytest.raises(ModelFailed):
        await ask(runtime, bundle.id, {"x": [[1, 2, 3]]})
    (folder / "model.onnx").write_bytes(content)
    await ask(runtime, bundle.id, {"x": [[1, 2, 3]]})


async def test_a_full_queue_says_so_at_once(
    runtime: Runtime, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "MAX_CALLS", 2)
    bundle = await loaded(runtime, save(endless()))
    async with runtime.infer(bundle.id, FOREVER), runtime.infer(bundle.id, ONCE):
        with pytest.raises(NodeBusy) as caught:
            await ask(runtime, bundle.id, ONCE)
        assert caught.value.retry_after
    await trio.sleep(caught.value.retry_after)
    await ask(runtime, bundle.id, ONCE)


async def test_the_event_loop_goes_on_while_a_model_runs(runtime: Runtime, save: Save) -> None:
    bundle = await loaded(runtime, save(endless()))
    ticks = 0
    with trio.move_on_after(0.5):
        async with runtime.infer(bundle.id, FOREVER):
            while True:
                await trio.sleep(0.01)
                ticks += 1
    assert ticks > 10


async def test_leaving_the_runtime_ends_all_workers(save: Save) -> None:
    async with AsyncExitStack() as calls:
        async with open_worker_runtime() as runtime:
            bundle = await loaded(runtime, save(endless()))
            await loaded(runtime, SENTIMENT_ANALYZER)
            answer = await calls.enter_async_context(runtime.infer(bundle.id, FOREVER))
            assert len(workers()) == 2
        assert workers() == []
        with pytest.raises(ModelFailed):
            await anext(answer)
    with pytest.raises(ModelNotFound):
        await ask(runtime, bundle.id, ONCE)


def wait_until_dead(worker: psutil.Process) -> None:
    """Within three seconds; whether anybody reaps an orphan depends on the machine."""
    end = time.monotonic() + 3
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


PARENT = """
import sys, trio
from pathlib import Path
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.workers import open_worker_runtime

async def main():
    async with open_worker_runtime() as runtime:
        bundle = await read_bundle(Path(sys.argv[1]))
        await runtime.load(bundle)
        async with runtime.infer(bundle.id, {"times": 1 << 62, "x": [0, 0, 0]}):
            heavy = [name for name in ("onnxruntime", "numpy", "tokenizers", "onnx") if name in sys.modules]
            print("running", *heavy, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def test_no_worker_outlives_its_node_and_the_node_stays_light(save: Save) -> None:
    command = [sys.executable, "-c", PARENT, str(save(endless()))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == "running\n"
        (worker,) = psutil.Process(node.pid).children()
        node.kill()
    wait_until_dead(worker)


def test_ctrl_c_in_the_terminal_is_not_for_workers(save: Save) -> None:
    command = [sys.executable, "-c", PARENT, str(save(endless()))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        node.stdout.readline()
        (worker,) = psutil.Process(node.pid).children()
        assert os.getpgid(worker.pid) != os.getpgid(node.pid)
        node.kill()
    wait_until_dead(worker)


async def test_a_worker_sees_no_secret_of_its_node(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMESH_SECRET", "x")
    await loaded(runtime, SENTIMENT_ANALYZER)
    assert not [name for name in workers()[0].environ() if name.startswith("LLMESH")]


async def test_a_worker_says_nothing_and_tells_nobody(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bundle = await loaded(runtime, SENTIMENT_ANALYZER)
    assert workers()[0].environ()["ORT_DISABLE_TELEMETRY"] == "1"
    assert workers()[0].net_connections() == []
    await ask(runtime, bundle.id, GOOD)
    await runtime.unload(bundle.id)
    assert "wrote" not in caplog.text


async def test_an_idle_worker_costs_nothing(runtime: Runtime) -> None:
    bundle = await loaded(runtime, SENTIMENT_ANALYZER)
    await ask(runtime, bundle.id, GOOD)
    (worker,) = workers()
    before = sum(worker.cpu_times()[:2])
    start = time.perf_counter()
    await trio.sleep(0.5)
    assert sum(worker.cpu_times()[:2]) - before < 0.2 * (time.perf_counter() - start)
