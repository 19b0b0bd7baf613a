"""KServe V2 on a node beside mlserver and litserve: the same graph, the same request, taking turns.

The graph has MiniLM's shape (six layers of 384) and random weights, and takes 16 token ids, so that no
download is needed; each server runs it on one thread.  mlserver speaks V2 too, litserve its own JSON;
litserve gathers batches of at most eight within 2 ms.  The other servers have environments of their
own, made at the first run (mlserver and the node want other versions of the same packages).  Aim: at
8 clients ahead of both.

Usage: python benchmarks/serving.py [--rounds 3] [--seconds 2] [--clients 1,8,64]
       [--rivals /tmp/llmesh-rivals] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from load import Question, Tally, load, post, whole
from onnx import TensorProto, helper, numpy_helper

WIDTH, LAYERS, HEADS, WORDS = 384, 6, 12, 30522
PACKAGES = ("mlserver>=1.7,<2", "litserve>=0.2.19,<0.3", "onnxruntime>=1.23,<2")
CLIENTS = (1, 8, 64)


# --- the model --------------------------------------------------------------------------------


class Graph:
    """An encoder, node by node."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._rng = np.random.default_rng(7)

    def weight(self, *shape: int) -> str:
        return self.constant(self._rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0])))

    def constant(self, value: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def dense(self, value: str, into: int, out: int) -> str:
        return self.add("Add", self.add("MatMul", value, self.weight(into, out)), self.weight(out))

    def normal(self, value: str) -> str:
        return self.add("LayerNormalization", value, self.weight(WIDTH), self.weight(WIDTH))

    def heads(self, value: str, *order: int) -> str:
        split = self.add(
            "Reshape", self.dense(value, WIDTH, WIDTH), self.constant([0, 0, HEADS, WIDTH // HEADS])
        )
        return self.add("Transpose", split, perm=order)

    def layer(self, value: str) -> str:
        query, key, worth = (self.heads(value, *o) for o in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
        scale = self.constant(np.float32((WIDTH // HEADS) ** -0.5))
        seen = self.add("Softmax", self.add("Mul", self.add("MatMul", query, key), scale), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", seen, worth), perm=(0, 2, 1, 3))
        joined = self.dense(self.add("Reshape", mixed, self.constant([0, 0, WIDTH])), WIDTH, WIDTH)
        value = self.normal(self.add("Add", value, joined))
        wide = self.dense(value, WIDTH, 4 * WIDTH)
        half = self.add("Mul", wide, self.constant(np.float32(2**-0.5)))
        gate = self.add("Add", self.add("Erf", half), self.constant(np.float32(1)))
        gelu = self.add("Mul", self.add("Mul", wide, gate), self.constant(np.float32(0.5)))
        return self.normal(self.add("Add", value, self.dense(gelu, 4 * WIDTH, WIDTH)))

    def save(self, path: Path) -> None:
        value = self.normal(self.add("Gather", self.weight(WORDS, WIDTH), "input_ids"))
        for _ in range(LAYERS):
            value = self.layer(value)
        self._nodes.append(helper.make_node("ReduceMean", [value], ["embedding"], axes=[1], keepdims=0))
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
        graph = helper.make_graph(self._nodes, "minilm", [ids], [out], self._weights)
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


# --- the servers ------------------------------------------------------------------------------


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            # litserve's own processes outlive it.
            left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            _, stuck = psutil.wait_procs([psutil.Process(process.pid), *left], 15)
            for each in stuck:
                each.kill()


def environment(folder: Path) -> str:
    """The interpreter of the other servers."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(python)


def script(rival: str) -> str:
    return str(Path(__file__).with_name(f"serve_{rival}.py"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def answering(name: str, question: Question, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server gives answers."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            tally = await load(question, 1, 0.1)
            if tally.times:
                return
        except OSError:
            pass
        await asyncio.sleep(0.5)
    sys.exit(f"{name} did not start (exit status {process.poll()}).")


def questions(options: argparse.Namespace, place: Path, stack: ExitStack) -> dict[str, Any]:
    graph = place / "minilm.onnx"
    Graph().save(graph)
    python = environment(options.rivals)
    node, ml, lit = free_port(), free_port(), free_port()
    ids = [int(word) for word in np.random.default_rng(1).integers(1, WORDS, 16)]
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1, 16], "data": ids}
    body = json.dumps({"inputs": [tensor]}).encode()
    v2 = "/v2/models/minilm/infer"
    llmesh = [
        sys.executable, "-m", "llmesh.node", "--port", str(node), "--data-dir", str(place / "home"),
        "--limits", "off", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--threads", "1",
        "--deploy", f"{graph},name=minilm",
    ]  # fmt: skip
    return {
        "llmesh": (Question(node, post(v2, body, node), whole), stack.enter_context(running(*llmesh))),
        "mlserver": (
            Question(ml, post(v2, body, ml), whole),
            stack.enter_context(running(python, script("mlserver"), str(graph), str(ml))),
        ),
        "litserve": (
            Question(lit, post("/predict", body, lit), whole),
            stack.enter_context(running(python, script("litserve"), str(graph), str(lit))),
        ),
    }


# --- the measurement --------------------------------------------------------------------------


Turn = tuple[str, int, Tally, float]
"""Server, clients, what came of it, and CPU milliseconds of the server's processes an answer."""


def busy(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of a server with its workers: what a busy machine leaves alone."""
    root = psutil.Process(process.pid)
    return sum(sum(each.cpu_times()[:2]) for each in (root, *root.children(recursive=True)))


async def turn(name: str, clients: int, asked: dict[str, Any], seconds: float) -> Turn:
    question, process = asked[name]
    before = busy(process)
    tally = await load(question, clients, seconds)
    return name, clients, tally, (busy(process) - before) * 1e3 / max(1, len(tally.times))


async def measure(asked: dict[str, Any], options: argparse.Namespace) -> list[Turn]:
    for name, (question, process) in asked.items():
        await answering(name, question, process)
        await load(question, 8, 1.0)  # warm
    return [
        await turn(name, clients, asked, options.seconds)
        for _ in range(options.rounds)
        for clients in options.clients
        for name in asked
    ]


def report(found: list[Turn], clients: tuple[int, ...]) -> None:
    def of(name: str, count: int) -> list[tuple[Tally, float]]:
        return [(tally, cpu) for way, at, tally, cpu in found if (way, at) == (name, count)]

    names = list(dict.fromkeys(name for name, *_ in found))
    heads = ("clients", "answers/s", "p50 ms", "p99 ms", "CPU ms", "refused", "failed", "llmesh is")
    print(f"{'':>10}" + "".join(f"{head:>11}" for head in heads))
    for name in names:
        for count in clients:
            turns = of(name, count)
            each = [(tally.rate, tally.quantile(0.5), tally.quantile(0.99), cpu) for tally, cpu in turns]
            rate, p50, p99, cpu = map(statistics.median, zip(*each, strict=True))
            lost = [sum(getattr(tally, field) for tally, _ in turns) for field in ("refused", "failed")]
            pairs = zip(of("llmesh", count), turns, strict=True)
            ratio = statistics.median(ours.rate / theirs.rate for (ours, _), (theirs, _) in pairs)
            print(
                f"{name:>10}{count:>11}{rate:>11.0f}{p50:>11.2f}{p99:>11.2f}{cpu:>11.2f}"
                f"{lost[0]:>11}{lost[1]:>11}{ratio:>10.2f}x"
            )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", type=_numbers, default=CLIENTS)
    parser.add_argument("--rivals", type=Path, default=Path(tempfile.gettempdir()) / "llmesh-rivals")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        found = asyncio.run(measure(questions(options, Path(place), stack), options))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    report(found, options.clients)
    if options.json is not None:
        rows = [{"server": name, "clients": n, "cpu": cpu, **vars(tally)} for name, n, tally, cpu in found]
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
