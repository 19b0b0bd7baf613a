"""What one inference costs on each way to the same model, with the same text, in one run.

Ways: a bare onnxruntime call (tokenizing included); the worker process; REST on the node that has the
model; REST through one mesh hop (two processes); the SDK; MeshNode.request_inference.  They take
turns, so that a busy machine hurts all alike: read the differences, not the absolute times.

Also the memory of a node and of its worker apart, the time from start to ready, and the CPU of idle
nodes.  Prints a table and writes benchmarks/results/roundtrip.json.

Usage: python benchmarks/roundtrip.py [--rounds 10] [--requests 100]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
import psutil
import tokenizers
import trio

from llmesh import MeshClient, MeshNode
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.workers import open_worker_runtime

MODEL = "sentiment-analyzer"
TEXT = "今天的服务真的太棒了，下次还会再来！"
CLIENTS = (1, 8)
IDLE_SECONDS = 15.0
RESULTS = Path(__file__).parent / "results"

Ask = Callable[[], Awaitable[object]]
Way = Callable[[], Any]
"""Opens one client of a way: an async context manager that gives an `Ask`."""


# --- the ways ---------------------------------------------------------------------------------


def bare() -> Callable[[], None]:
    """Tokenize and run in this process, on one thread, as the worker does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(SENTIMENT_ANALYZER / "model.onnx", options)
    tokenizer = tokenizers.Tokenizer.from_file(str(SENTIMENT_ANALYZER / "tokenizer.json"))
    wanted = {each.name for each in session.get_inputs()}

    def ask() -> None:
        encoded = tokenizer.encode(TEXT)
        feeds = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        arrays = {name: np.array([feeds[name]], dtype=np.int64) for name in wanted}
        session.run(None, arrays)

    return ask


@asynccontextmanager
async def rest(url: str, model: str = MODEL) -> AsyncIterator[Ask]:
    """One kept-alive connection and as little client as HTTP allows."""
    host, port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
    body = json.dumps({"model": model, "input": {"text": TEXT}}).encode()
    head = f"POST /api/v1/inference HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with await trio.open_tcp_stream(host, port) as stream:

        async def ask() -> None:
            await stream.send_all(request)
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some(65536)
            top, _, rest_of_it = data.partition(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 200"), data
            length = int(top.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(rest_of_it) < length:
                rest_of_it += await stream.receive_some(65536)

        yield ask


def always(ask: Ask) -> Way:
    """A way whose clients share what they use."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Ask]:
        yield ask

    return opened


# --- nodes ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Spawned:
    """A node in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    address: str
    ready: float


@contextmanager
def spawned(folder: Path, *arguments: str) -> Iterator[Spawned]:
    began = time.perf_counter()
    command = [
        sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0", "--data-dir", str(folder),
        "--listen", "/ip4/127.0.0.1/tcp/0", "--limits", "off", *arguments,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not (folder / "node.json").exists():
                assert process.poll() is None
                time.sleep(0.005)
            facts = json.loads((folder / "node.json").read_text())
            yield Spawned(process, facts["url"], facts["addresses"][0], time.perf_counter() - began)
        finally:
            process.terminate()


# --- measuring --------------------------------------------------------------------------------


@dataclass(slots=True)
class Samples:
    """Seconds of each request, and requests per second of each round."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        ordered = sorted(self.seconds)
        return {
            "p50_ms": round(1000 * statistics.median(ordered), 3),
            "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 3),
            "per_second": round(statistics.median(self.rates), 1),
        }


async def measure(way: Way, clients: int, requests: int, into: Samples) -> None:
    """One turn of a way: `clients` at once, `requests` in all."""

    async def one(ask: Ask) -> None:
        for _ in range(requests // clients):
            began = time.perf_counter()
            await ask()
            into.seconds.append(time.perf_counter() - began)

    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(way()) for _ in range(clients)]
        for ask in asks:
            await ask()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for ask in asks:
                nursery.start_soon(one, ask)
        into.rates.append(clients * (requests // clients) / (time.perf_counter() - began))


def memory(process: psutil.Process) -> float:
    """Resident MB."""
    return round(process.memory_info().rss / 1e6, 1)


async def idle_cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """Percent of one core that each uses while nothing is asked of it."""
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    await trio.sleep(IDLE_SECONDS)
    return {
        name: round(100 * (sum(process.cpu_times()[:2]) - before[name]) / IDLE_SECONDS, 2)
        for name, process in processes.items()
    }


async def main(rounds: int, requests: int) -> dict[str, Any]:
    """Run it all; the result as it is written."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(spawned(folder / "provider", "--demo"))
        hop = stack.enter_context(spawned(folder / "consumer", "--bootstrap", served.address))
        processes = processes_of(served, hop)
        await trio.sleep(3)
        at_rest = {name: memory(process) for name, process in processes.items()}
        idle = await idle_cpu(processes)
        ways = await open_ways(stack, folder, served.url, hop.url)
        samples = {(name, clients): Samples() for name in ways for clients in CLIENTS}
        for way in ways.values():
            await measure(way, 1, requests, Samples())  # warm
        for number in range(rounds):
            for (name, clients), into in samples.items():
                await measure(ways[name], clients, requests, into)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        rows = {f"{name}, {clients}": each.row() for (name, clients), each in samples.items()}
        added = rows["REST, one mesh hop, 1"]["p50_ms"] - rows["REST, same node, 1"]["p50_ms"]
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "load_average": os.getloadavg(),
            "rounds": rounds,
            "requests_per_turn": requests,
            "ways": rows,
            "hop_adds_p50_ms": round(added, 3),
            "start_to_ready_s": {
                "with the demo model": round(served.ready, 2),
                "without": round(hop.ready, 2),
            },
            "memory_mb_at_rest": at_rest,
            "memory_mb_after": {name: memory(process) for name, process in processes.items()},
            "cpu_percent_at_rest": idle,
        }


def processes_of(served: Spawned, hop: Spawned) -> dict[str, psutil.Process]:
    node = psutil.Process(served.process.pid)
    [worker] = node.children(recursive=True)
    return {"provider": node, "its worker": worker, "consumer": psutil.Process(hop.process.pid)}


async def open_ways(stack: AsyncExitStack, folder: Path, provider: str, consumer: str) -> dict[str, Way]:
    """Every way, warm; `provider` and `consumer` are URLs."""
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    runtime = await stack.enter_async_context(open_worker_runtime(threads=1))
    await runtime.load(bundle)
    client = await stack.enter_async_context(MeshClient(provider))
    node = MeshNode(port=0, mdns=False, listen=["/ip4/127.0.0.1/tcp/0"], data_dir=folder / "mine")
    await stack.enter_async_context(node)
    await node.deploy_model(SENTIMENT_ANALYZER, MODEL)
    call = bare()

    async def ask_bare() -> None:
        call()

    async def ask_worker() -> None:
        async with runtime.infer(bundle.id, {"text": TEXT}) as pieces:
            async for _ in pieces:
                pass

    return {
        "bare onnxruntime": always(ask_bare),
        "worker": always(ask_worker),
        "REST, same node": lambda: rest(provider),
        "REST, one mesh hop": lambda: rest(consumer),
        "SDK, same node": always(lambda: client.inference(MODEL, {"text": TEXT})),
        "MeshNode, own model": always(lambda: node.request_inference(MODEL, {"text": TEXT})),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'way, clients':<26}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}"]
    lines += [
        f"{name:<26}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['per_second']:>9.0f}"
        for name, row in result["ways"].items()
    ]
    lines += [f"{name}: {value}" for name, value in result.items() if name != "ways"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=104)
    chosen = parser.parse_args()
    outcome = trio.run(main, chosen.rounds, chosen.requests)
    print(table(outcome))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "roundtrip.json").write_text(json.dumps(outcome, indent=2) + "\n")
