"""The command line: what is refused before anything starts, what signals do, what it prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from node_process import Mesh, NodeProcess, until

from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.node.home import open_home

LOOPS_A_SECOND = {"times": 1 << 62, "x": [1.0, 2.0, 3.0]}


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    """What the command line says on stderr when it refuses to start: one line, exit code 2."""
    done = subprocess.run(
        [
            sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0",
            "--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", str(folder), *arguments,
        ],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("llmesh: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "node.json").exists()
    return done.stderr


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "--port" in refused(home, "--port", "http")
    assert "--prot" in refused(home, "--prot", "1")
    assert "LLMESH_STAKE" in refused(home, LLMESH_STAKE="much")
    (tmp_path / "node.toml").write_text("stakes = 1\n")
    assert "stakes in" in refused(home, "--config", str(tmp_path / "node.toml"))
    assert not home.exists(), "nothing is written for a bad option"


def test_what_is_taken_or_held_or_no_model_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refused(home, "--port", str(taken.getsockname()[1]))
    with open_home(home):
        before = {path.name: path.read_bytes() for path in home.iterdir()}
        assert f"process {os.getpid()}" in refused(home)
        assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07not onnx")
    assert "bad.onnx" in refused(home, "--demo", "--deploy", str(tmp_path / "bad.onnx"))
    assert not [process for process in psutil.process_iter() if process.ppid() == os.getpid()]


def test_it_prints_what_a_person_needs(mesh: Mesh) -> None:
    node = mesh.start(
        "printing", "--stake", "12.5", "--demo", "--deploy", f"{SENTIMENT_ANALYZER},name=情感,fee=0.1"
    ).ready()
    until(lambda: "Ctrl-C" in node.said(), 5, "the banner")
    said = node.said()
    for part in (node.id, node.address, node.url, "情感:1.0.0  0.1 MESH", "12.5 MESH"):
        assert part in said
    assert "sentiment-analyzer" not in said, "one model has one name here"
    assert sorted(model["name"] for model in node.models()) == ["gpt-mini", "情感"]
    command = next(line for line in said.splitlines() if line.strip().startswith("curl"))
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert '"label":"positive"' in answer
    assert node.stop() == 0
    assert "Traceback" not in node.said()


def test_verbs_ask_the_running_node_and_after_a_kill_its_files(mesh: Mesh) -> None:
    node = mesh.start("keyed").ready()
    made = verb(node, "keys", "create", "--name", "a", "--scopes", "inference")
    assert node.infer()[1]["code"] == 4001
    headers = {"Authorization": f"Bearer {made['key']}"}
    with urllib.request.urlopen(urllib.request.Request(f"{node.url}/api/v1/status", None, headers)) as answer:
        assert answer.status == 200
    assert verb(node, "wallet")["balance"] == 1_000_000
    node.kill()
    assert (node.folder / "owner.sock").exists()
    assert [key["in_force"] for key in verb(node, "keys", "list")["keys"]] == [True]
    assert verb(node, "keys", "revoke", "a")["revoked"]
    again = mesh.start("keyed").ready()
    assert again.get("/api/v1/status")["node_id"] == node.id
    assert again.stop() == 0
    assert not (node.folder / "owner.sock").exists()


def verb(node: NodeProcess, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmesh.node", *arguments, "--data-dir", str(node.folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_five_seconds_and_running_work_first(
    mesh: Mesh, endless_model: Path, number: signal.Signals
) -> None:
    node = mesh.start(f"ending-{number}", "--demo", "--deploy", f"{endless_model},name=slow").ready()
    workers = node.workers()
    times = _times_for(node, 1.0)
    with ThreadPoolExecutor(2) as pool:
        short = pool.submit(node.infer, "slow", {**LOOPS_A_SECOND, "times": times})
        until(lambda: node.get("/api/v1/status"), 5, "answering")
        began = time.monotonic()
        time.sleep(0.2)
        os.killpg(node.process.pid, number)
        assert node.process.wait(10) == 0
        assert time.monotonic() - began < 5.5
        assert short.result()[0] == 200, short.result()
    assert "Traceback" not in node.said()
    assert not any(worker.is_running() for worker in workers)
    assert not (node.folder / "node.json").exists()


def _times_for(node: NodeProcess, seconds: float) -> int:
    """How many loops of the endless model take about that long here."""
    times = 100_000
    while True:
        began = time.monotonic()
        assert node.infer("slow", {**LOOPS_A_SECOND, "times": times})[0] == 200
        took = time.monotonic() - began
        if took > seconds / 4:
            return int(times * seconds / took)
        times *= 2


def test_work_without_end_is_cut_off_after_the_grace(mesh: Mesh, endless_model: Path) -> None:
    node = mesh.start("endless", "--deploy", f"{endless_model},name=slow").ready()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: node.infer("slow", LOOPS_A_SECOND)).add_done_callback(
            lambda done: done.exception()
        )
        worker = node.workers()[0]
        until(lambda: worker.cpu_times().user > 1, 10, "working")
        began = time.monotonic()
        assert node.stop() == 0
        assert 1.5 < time.monotonic() - began < 5.5
    assert not worker.is_running()
    assert "Traceback" not in node.said()


def test_a_second_signal_ends_it_at_once(mesh: Mesh, endless_model: Path) -> None:
    node = mesh.start("twice", "--deploy", f"{endless_model},name=slow").ready()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: node.infer("slow", LOOPS_A_SECOND)).add_done_callback(
            lambda done: done.exception()
        )
        worker = node.workers()[0]
        until(lambda: worker.cpu_times().user > 1, 10, "working")
        node.signal(signal.SIGINT)
        time.sleep(0.2)
        began = time.monotonic()
        node.signal(signal.SIGINT)
        assert node.process.wait(5) == 128 + signal.SIGINT
        assert time.monotonic() - began < 1
    until(lambda: not worker.is_running(), 5, "the worker is gone")
    with open_home(node.folder):
        pass


def test_a_signal_during_the_start_is_no_traceback(mesh: Mesh) -> None:
    for delay in (0.1, 0.6, 1.2):
        node = mesh.start(f"early-{delay}", "--demo")
        time.sleep(delay)
        # Python itself takes a while to start; until then a signal is the system's matter.
        assert node.stop() in (0, -signal.SIGTERM), node.said()
        assert "Traceback" not in node.said()


def test_a_node_whose_output_nobody_reads_lives_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        node.stdout.close()
        until((tmp_path / "node.json").exists, 30, "ready")
        time.sleep(0.5)
        assert node.poll() is None
        node.terminate()
        assert node.wait(10) == 0


def test_without_asking_the_next_free_port_is_taken_and_remembered(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMESH_")}
    command = [sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0", "--data-dir"]
    with socket.socket() as taken:
        with suppress(OSError):  # someone else has it: just as well
            taken.bind(("0.0.0.0", 4001))
            taken.listen(1)
        first = _port_of_a_start([*command, str(tmp_path)], tmp_path, environment)
        second = _port_of_a_start([*command, str(tmp_path)], tmp_path, environment)
    assert first == second
    assert 4002 <= first <= 4100


def _port_of_a_start(command: list[str], home: Path, environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        until((home / "node.json").exists, 30, "ready")
        address = json.loads((home / "node.json").read_text())["addresses"][0]
        process.terminate()
    return int(address.split("/")[4])
