"""What does a worker process cost, and what does batching win, beside onnxruntime in a bare loop?

Each round runs, one after the other, on the same texts and with one thread a model:

  bare      tokenizer, onnxruntime and softmax or pooling in this process, batches of 1, 2, 4 and 8
  worker    the runtime with max_batch 1: the model in its sandboxed process
  batched   the runtime as it comes: max_batch 8

with 1, 8 and 64 closed-loop clients of the runtime.  Absolute figures move with the machine and its
neighbours, so trust what is compared within a round: the median over rounds of the difference of
p50s for one client, of the ratio to the best bare batch for more.  After each round the workers are
killed: the last line says how long the next answer then took, a fresh worker's start included.

Usage: python benchmarks/runtime.py [--rounds 5] [--seconds 1] [--minilm FOLDER] [--json FILE]
(`--minilm` takes the folder that benchmarks/export_minilm.py makes.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import trio
from tokenizers import Tokenizer

from llmesh.core.ids import ModelId
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.memory import own_memory
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.settings import WorkerSettings
from llmesh.runtime.workers import open_worker_runtime

CLIENTS = (1, 8, 64)
BATCHES = (1, 2, 4, 8)
TEXTS = [
    f"{opening}{what}{verdict}"
    for opening in ("这家", "那个", "我们的", "他说的")
    for what in ("酒店的服务", "笔记本电脑", "电影的结尾", "餐厅的环境")
    for verdict in ("非常好，下次还来。", "太差了，不推荐。", "还可以，价格合适。", "让人失望，要退货。")
]


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement: milliseconds, answers a second, and who made it with how many clients (or rows)."""

    stack: str
    clients: int
    p50: float
    p99: float
    rate: float


class Bare:
    """The least code that answers: a tokenizer, a session, and what makes an answer of its output."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.enable_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        before = own_memory()
        self.session = ort.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.memory = own_memory() - before
        self.wanted = {node.name for node in self.session.get_inputs()}
        self.output = self.session.get_outputs()[0].name

    def answer(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer.encode_batch(texts)
        feeds = {
            "input_ids": np.array([one.ids for one in encoded]),
            "attention_mask": np.array([one.attention_mask for one in encoded]),
            "token_type_ids": np.array([one.type_ids for one in encoded]),
        }
        (output,) = self.session.run([self.output], {name: feeds[name] for name in self.wanted})
        if self.output == "logits":
            exponents = np.exp(output - output.max(axis=1, keepdims=True))
            return exponents / exponents.sum(axis=1, keepdims=True)
        mask = feeds["attention_mask"][:, :, None]
        pooled = (output * mask).sum(axis=1) / mask.sum(axis=1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def measure_bare(bare: Bare, rows: int, seconds: float) -> Figures:
    times, turn, end = [], 0, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        bare.answer([TEXTS[(turn + n) % len(TEXTS)] for n in range(rows)])
        times.append((time.perf_counter() - start) * 1e3)
        turn += rows
    return figures("bare", rows, times, rows * len(times), seconds)


async def measure_runtime(
    stack: str, runtime: Runtime, model: ModelId, clients: int, seconds: float
) -> Figures:
    times: list[float] = []

    async def client(turn: int) -> None:
        while (start := time.perf_counter()) < end:
            async with runtime.infer(model, {"text": TEXTS[turn % len(TEXTS)]}) as answer:
                async for _ in answer:
                    pass
            times.append((time.perf_counter() - start) * 1e3)
            turn += clients

    end = time.perf_counter() + seconds
    async with trio.open_nursery() as nursery:
        for turn in range(clients):
            nursery.start_soon(client, turn)
    return figures(stack, clients, times, len(times), seconds)


def figures(stack: str, clients: int, times: list[float], answers: int, seconds: float) -> Figures:
    cuts = statistics.quantiles(times, n=100)
    return Figures(stack, clients, cuts[49], cuts[98], answers / seconds)


async def measure_revival(runtimes: Iterable[Runtime], model: ModelId) -> Figures:
    """From the death of all workers to the answer of the first fresh one, and then the other's."""
    for worker in Path("/proc/self/task").glob("*/children"):
        for pid in worker.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    start, times = time.perf_counter(), []
    for runtime in runtimes:
        async with runtime.infer(model, {"text": TEXTS[0]}) as answer:
            async for _ in answer:
                pass
        times.append((time.perf_counter() - start) * 1e3)
    return Figures("revival", 1, times[0], times[0], 1e3 / times[0])


async def measure(folder: Path, rounds: int, seconds: float) -> tuple[list[list[Figures]], dict[str, int]]:
    bare = Bare(folder)
    bundle = await read_bundle(folder)
    found = []
    async with (
        open_worker_runtime(WorkerSettings(threads=1, max_batch=1)) as single,
        open_worker_runtime(WorkerSettings(threads=1)) as batched,
    ):
        runtimes = {"worker": single, "batched": batched}
        for runtime in runtimes.values():
            await runtime.load(bundle)
        for _ in range(rounds + 1):  # the first to warm up
            now = [measure_bare(bare, rows, seconds) for rows in BATCHES]
            for clients in CLIENTS:
                for stack, runtime in runtimes.items():
                    now.append(await measure_runtime(stack, runtime, bundle.id, clients, seconds))
            memory = {stack: runtime.workers()[0].resident for stack, runtime in runtimes.items()}
            now.append(await measure_revival(runtimes.values(), bundle.id))
            found.append(now)
    return found[1:], {"bare session": bare.memory, **memory}


def one(now: list[Figures], stack: str, clients: int) -> Figures:
    return next(each for each in now if (each.stack, each.clients) == (stack, clients))


def best_bare(now: list[Figures]) -> float:
    return max(each.rate for each in now if each.stack == "bare")


def report(title: str, found: list[list[Figures]], memory: dict[str, int]) -> None:
    def median(pick: Callable[[list[Figures]], float]) -> float:
        return statistics.median(map(pick, found))

    print(f"\n{title}: {', '.join(f'{name} {size >> 20} MiB' for name, size in memory.items())}")
    print(f"{'':>8} {'clients':>8} {'p50 ms':>9} {'p99 ms':>9} {'answers/s':>10}")
    for each in found[0][:-1]:
        at = (each.stack, each.clients)
        rows = [
            median(lambda now, f=field, at=at: getattr(one(now, *at), f)) for field in ("p50", "p99", "rate")
        ]
        print(f"{each.stack:>8} {each.clients:>8} {rows[0]:>9.3f} {rows[1]:>9.3f} {rows[2]:>10.0f}")
    extra = [one(now, "worker", 1).p50 - one(now, "bare", 1).p50 for now in found]
    print(f"one client: {statistics.median(extra):+.3f} ms to bare, at best {min(extra):+.3f} (aim: +0.3)")
    for clients in CLIENTS[1:]:
        for stack in ("worker", "batched"):
            ratio = median(lambda now, c=clients, s=stack: one(now, s, c).rate / best_bare(now))
            print(f"{clients} clients, {stack}: {ratio:.2f} of the best bare batch (aim: 0.95)")
    print(f"an answer after the worker was killed: {median(lambda now: now[-1].p50):.0f} ms (aim: 1000)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folders = {"sentiment-analyzer": SENTIMENT_ANALYZER}
    if options.minilm is not None:
        folders["MiniLM"] = options.minilm
    else:
        print("MiniLM is left out: make it with benchmarks/export_minilm.py and give its folder as --minilm.")
    print(
        platform.processor() or platform.machine(), f"{os.cpu_count()} cores, onnxruntime {ort.__version__}"
    )
    written = {}
    for title, folder in folders.items():
        found, memory = trio.run(measure, folder, options.rounds, options.seconds)
        report(title, found, memory)
        written[title] = {"memory": memory, "rounds": [[asdict(each) for each in now] for now in found]}
    if options.json is not None:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
