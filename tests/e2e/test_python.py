"""MeshNode as the contract prints it, in programs of their own: asyncio, trio, a prompt, no stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from node_process import Mesh, NodeProcess, until

from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.node.home import open_home

OPTIONS = 'mdns=False, listen=["/ip4/127.0.0.1/tcp/0"], data_dir="{home}"'

CONTRACT = """
import {loop} as loop
from llmesh import Amount, MeshNode, NodeStateError, StartRefused

async def main():
    # 创建带有质押的节点
    node = MeshNode(stake=1000, {options})
    for early in (node.wait, lambda: node.deploy_model("x"), lambda: node.request_inference("x", "y")):
        try:
            await early()
        except NodeStateError as error:
            assert "not been started" in str(error)
    # 启动节点
    await node.start(port={port})
    try:
        await node.start()
    except NodeStateError as error:
        print("second start:", error)
    # 部署模型
    id = await node.deploy_model(
        model_path="{model}",
        name="sentiment-analyzer",
        fee=0.1
    )
    # 从网络请求推理
    result = await node.request_inference(
        model_name="sentiment-analyzer",
        input_data={{"text": "你好世界"}}
    )
    assert result.model_id == id and result.provider == node.node_id
    print("label:", result.output["label"])
    {ending}

loop.run({call})
print("program over")
"""

# libp2p imports a deprecated part of websockets where that is installed, as the tests' oracles do.
OF_LIBP2P = "ignore:websockets.legacy is deprecated:DeprecationWarning"


def run(folder: Path, program: str, seconds: float = 40) -> subprocess.CompletedProcess[str]:
    """The program, in a folder of its own; fails if it is not over in time."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", OF_LIBP2P, "-c", program],
        cwd=folder, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def contract(home: Path, loop: str, ending: str, model: str = str(SENTIMENT_ANALYZER)) -> str:
    return CONTRACT.format(
        loop=loop, call="main()" if loop == "asyncio" else "main", model=model, port=0,
        options=OPTIONS.format(home=home), ending=ending,
    )  # fmt: skip


def leftovers(home: Path) -> list[psutil.Process]:
    """Processes that still have to do with this data directory: nodes, or workers of one."""
    return [
        process
        for process in psutil.process_iter()
        if any(str(home) in word for word in _command_line(process))
    ]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(("loop", "model"), [("asyncio", "model.onnx"), ("trio", "")])
def test_the_contract_as_printed(tmp_path: Path, loop: str, model: str) -> None:
    ending = """
    await node.stop()
    await node.stop()
    await node.wait()
    for late in (node.start, lambda: node.deploy_model("x"), lambda: node.request_inference("x", "y")):
        try:
            await late()
        except NodeStateError as error:
            print("late:", error)
    """
    done = run(tmp_path, contract(tmp_path / "home", loop, ending, str(SENTIMENT_ANALYZER / model)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("second start: This node is started already")
    assert lines[1] == "label: positive"
    assert len([line for line in lines if line.startswith("late: This node has been stopped")]) == 3
    assert not (tmp_path / "home" / "node.json").exists()


@pytest.fixture(scope="module")
def watcher(mesh: Mesh) -> NodeProcess:
    """Another node, to see what the programs announce."""
    return mesh.start("watcher").ready()


@pytest.mark.parametrize(("loop", "ending"), [("asyncio", "pass"), ("trio", "raise SystemExit(0)")])
def test_a_program_that_forgets_stop_leaves_nothing_behind(
    watcher: NodeProcess, tmp_path: Path, loop: str, ending: str
) -> None:
    home = tmp_path / "home"
    told = f'bootstrap=["{watcher.address}"], '
    ending = f"import sys; sys.stdin.readline(); {ending}"
    program = contract(home, loop, ending).replace("stake=1000, ", "stake=1000, " + told)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as forgetful:
        until(lambda: watcher.models(), 30, "its offer is announced")
        _, said = forgetful.communicate("now\n", timeout=20)
    assert forgetful.returncode == 0, said
    until(lambda: not watcher.models(), 2, "its offer is withdrawn")
    assert not (home / "node.json").exists()
    assert leftovers(home) == []
    with open_home(home):
        pass


def test_a_killed_program_leaves_no_worker(tmp_path: Path) -> None:
    home = tmp_path / "home"
    program = contract(home, "asyncio", "print('pid', flush=True); await node.wait()")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        until(lambda: killed.stdout and killed.stdout.readline() == "pid\n", 30, "serving")
        workers = psutil.Process(killed.pid).children(recursive=True)
        assert workers
        killed.kill()
    until(lambda: not any(worker.is_running() for worker in workers), 5, "workers are gone")


def test_at_a_prompt(tmp_path: Path) -> None:
    options = OPTIONS.format(home=tmp_path / "home")
    lines = [
        "from llmesh import MeshNode",
        f"node = MeshNode(stake=1000, {options})",
        "await node.start(port=0)",
        f'await node.deploy_model(model_path="{SENTIMENT_ANALYZER}", name="my-model", fee=0.1)',
        'result = await node.request_inference(model_name="my-model", input_data={"text": "你好世界"})',
        'print("label:", result.output["label"])',
        "exit()",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "asyncio"],
        input="\n".join(lines) + "\n", cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert "label: positive" in done.stdout, done.stderr
    assert leftovers(tmp_path / "home") == []
    assert not (tmp_path / "home" / "node.json").exists()


BLOCK = """
import asyncio
from llmesh import MeshNode, StartRefused
OPTIONS = dict({options})

async def main():
    async with MeshNode(port=0, **OPTIONS) as node:
        assert node.url.startswith("http://127.0.0.1:"), node.url
        assert node.addresses[0].endswith(node.node_id)
        other = MeshNode(port=0, **OPTIONS)
        for _ in range(2):
            try:
                await other.start()
            except StartRefused as error:
                print(error)
        port = int(node.url.rpartition(":")[2])
        third = MeshNode(**{{**OPTIONS, "data_dir": "third"}})
        try:
            await third.start(port=port)
        except StartRefused as error:
            print(error)
        await third.start(port=0)
        await third.stop()
    await other.start()
    await other.stop()
    print("started after all")

asyncio.run(main())
"""


def test_a_refused_start_may_be_tried_again(tmp_path: Path) -> None:
    done = run(tmp_path, BLOCK.format(options=OPTIONS.format(home=tmp_path / "home")))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1]
    assert "held by another node (process " in lines[0]
    assert "The gateway cannot listen on 127.0.0.1 port" in lines[2]
    assert lines[3] == "started after all"


CANCEL = """
import {loop} as loop
import time
from llmesh import MeshNode, RequestTimeout, ValidationFailed

FOREVER = {{"times": 1 << 62, "x": [1.0, 2.0, 3.0]}}

async def give_up_asyncio(node):
    try:
        await loop.wait_for(node.request_inference("slow", FOREVER), 0.5)
    except TimeoutError:
        return True

async def give_up_trio(node):
    with loop.move_on_after(0.5) as scope:
        await node.request_inference("slow", FOREVER)
    return scope.cancelled_caught

async def main():
    async with MeshNode(port=0, {options}) as node:
        await node.deploy_model("{model}", "slow")
        began = time.monotonic()
        assert await give_up_{loop}(node)
        assert time.monotonic() - began < 2
        # The worker is free again: the next request is answered.
        result = await node.request_inference("slow", {{"times": 1, "x": [1.0, 2.0, 3.0]}}, timeout=5)
        print(result.output["y"].shape)
        try:
            await node.request_inference("slow", FOREVER, timeout=0.2)
        except RequestTimeout as error:
            print(error.code, error.request_id is not None)
        for bad in (dict(timeout=-1), dict(timeout="x"), dict(max_fee=float("nan")), dict(input_data=[1]),
                    dict(input_data={{1: 2}}), dict(model_name="")):
            try:
                await node.request_inference(**{{"model_name": "slow", "input_data": FOREVER, **bad}})
            except ValidationFailed as error:
                print("1004", bad)
        try:
            await node.deploy_model("{model}", "slow", fee=float("nan"))
        except ValidationFailed as error:
            print("1004 fee")

loop.run({call})
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_cancelled_call_ends_its_work_and_bad_calls_are_1004(
    tmp_path: Path, endless_model: Path, loop: str
) -> None:
    program = CANCEL.format(
        loop=loop, call="main()" if loop == "asyncio" else "main", model=endless_model,
        options=OPTIONS.format(home=tmp_path / "home"),
    )  # fmt: skip
    done = run(tmp_path, program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["(3,)", "1003 True"]
    assert len(lines) == 2 + 7, lines
