"""What being paid adds to an inference over one mesh hop: the same graph for a fee and free, in one run.

Two real nodes of one swarm; the consumer is its issuer.  Paid and free requests take turns, in either
order, so that a busy machine hurts both alike: read the differences.  `payment_adds_*` are at one client;
of that time the disk takes `fsync_*`, what a plain program pays in between for the bytes of one charge.
`throughput_at_8` is paid over free, the median of the rounds.  Beside it what the parts cost alone: a
commit of one charge to the journal (its fsync included), signing and checking a voucher and a receipt.
Prints a table and writes benchmarks/results/payments.json.

Usage: python benchmarks/payments.py [--rounds 10] [--requests 104]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import psutil
import trio

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, Work, check_receipt, sign_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, Voucher, channel_id, check_voucher, sign_voucher
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.journal.channels import AddChannel, ChannelRow
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side
from llmesh.journal.open import open_journal

TEXT = "今天的服务真的太棒了，下次还会再来！"
WAYS = ("free", "paid")
CLIENTS = (1, 8)
RESULTS = Path(__file__).parent / "results"
CHARGE_BYTES = 6 * 4_120
"""What a charge puts into the journal's log: six pages and their headers."""
OWNER = PeerId("12D3KooW" + "A" * 44)

Ask = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Samples:
    """Seconds of each request, requests per second of each round, and the CPU that both nodes used."""

    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    rates: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        return {
            "p10_ms": quantile(self.seconds, 0.1),
            "p50_ms": quantile(self.seconds, 0.5),
            "p99_ms": quantile(self.seconds, 0.99),
            "per_second": round(statistics.median(self.rates), 1),
            "cpu_ms": round(1000 * self.cpu / len(self.seconds), 3),
        }


def quantile(seconds: list[float], share: float) -> float:
    """Milliseconds."""
    return round(1000 * sorted(seconds)[int(len(seconds) * share)], 3)


def fsyncs(file: BinaryIO, count: int = 20) -> list[float]:
    """Seconds that it takes to make the bytes of a charge durable."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        os.pwrite(file.fileno(), bytes(CHARGE_BYTES), 0)
        os.fdatasync(file.fileno())
        times.append(time.perf_counter() - began)
    return times


@contextmanager
def node(folder: Path, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A node in a process of its own; the URL of its gateway, and the process."""
    command = [
        sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0", "--data-dir", str(folder),
        "--listen", "/ip4/127.0.0.1/tcp/0", "--limits", "off", *arguments,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not (folder / "node.json").exists():
                assert process.poll() is None
                time.sleep(0.05)
            facts = json.loads((folder / "node.json").read_text())
            yield facts["url"], psutil.Process(process.pid)
        finally:
            process.terminate()


def invite(folder: Path) -> str:
    """A line by which another node joins."""
    command = [sys.executable, "-m", "llmesh.node", "invite", "--data-dir", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(word for word in told.split() if word.startswith("llmesh1-"))


@asynccontextmanager
async def client(url: str, model: str) -> AsyncIterator[Ask]:
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
            top, _, rest = data.partition(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 200"), data
            length = int(top.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(rest) < length:
                rest += await stream.receive_some(65536)

        yield ask


async def measure(url: str, model: str, clients: int, requests: int, into: Samples) -> None:
    """One turn: `clients` at once, `requests` in all."""

    async def one(ask: Ask) -> None:
        for _ in range(requests // clients):
            began = time.perf_counter()
            await ask()
            into.seconds.append(time.perf_counter() - began)

    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(client(url, model)) for _ in range(clients)]
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for ask in asks:
                nursery.start_soon(one, ask)
        into.rates.append(clients * (requests // clients) / (time.perf_counter() - began))


def cpu(*processes: psutil.Process) -> float:
    """Seconds of CPU that the nodes, without their workers, have used."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


async def parts(folder: Path, count: int = 300) -> dict[str, float]:
    """Milliseconds of each part of a payment, alone."""
    secret = bytes(31) + b"\7"
    own, sign = Address(crypto.address_of(secret)), crypto.signer(secret)
    chain = Chain(1 << 40, own)
    config = ChannelConfig(own, own, own, own, own, 900, bytes(32))
    mark = channel_id(config, chain)
    work = Work(ModelId("a" * 64), "fp32-strict", bytes(32), bytes(32))
    receipts, vouchers, found = [], [], {}

    def timed(name: str, step: Callable[[int], object]) -> None:
        began = time.perf_counter()
        for number in range(1, count + 1):
            step(number)
        found[name] = round(1000 * (time.perf_counter() - began) / count, 4)

    def receipt(number: int) -> Receipt:
        attempt = AttemptId(RequestId(f"{number:032x}"), 1)
        return Receipt(own, attempt, NO_OFFER, work, Charge(mark, number, Amount(1), Amount(number)), 1)

    timed("sign a voucher", lambda n: vouchers.append(sign_voucher(Voucher(mark, Amount(n)), chain, sign)))
    timed("check a voucher", lambda n: check_voucher(vouchers[n - 1], config, chain))
    timed("sign a receipt", lambda n: receipts.append(sign_receipt(receipt(n), chain, sign)))
    timed("check a receipt", lambda n: check_receipt(receipts[n - 1], chain))
    async with open_journal(folder / "parts.db", OWNER) as journal:
        await journal.commit(AddChannel(ChannelRow(Side.PROVIDER, mark, OWNER, config)))
        began = time.perf_counter()
        for signed, voucher in zip(receipts, vouchers, strict=True):
            await journal.commit(RecordCharge(OWNER, signed, voucher, b"x" * 200))
        found["commit a charge"] = round(1000 * (time.perf_counter() - began) / count, 4)
    return found


async def main(rounds: int, requests: int) -> dict[str, Any]:
    """Run it all; the result as it is written."""
    with tempfile.TemporaryDirectory() as place, node(Path(place) / "consumer") as (url, consumer):
        folder = Path(place)
        dear = shutil.copytree(SENTIMENT_ANALYZER, folder / "paid")
        (dear / "README.md").write_text("The same graph, but another model.\n")
        deploy = ["--deploy", f"{SENTIMENT_ANALYZER},name=free", "--deploy", f"{dear},name=paid,fee=0.01"]
        with (
            node(folder / "provider", "--join", invite(folder / "consumer"), *deploy) as (_, provider),
            (folder / "probe").open("w+b") as probe,
        ):
            await trio.sleep(5)
            for way in WAYS:  # a stranger is not trusted with eight at once
                await measure(url, way, 1, 200, Samples())
            samples = {(way, clients): Samples() for clients in CLIENTS for way in WAYS}
            disk: list[float] = []
            for number in range(rounds):
                disk += fsyncs(probe)
                for (way, clients), into in sorted(samples.items(), reverse=number % 2 > 0):
                    before = cpu(consumer, provider)
                    await measure(url, way, clients, requests, into)
                    into.cpu += cpu(consumer, provider) - before
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
        return result(samples, disk) | {"parts_ms": await parts(folder)}


def result(samples: dict[tuple[str, int], Samples], disk: list[float]) -> dict[str, Any]:
    """The figures, and what they say of payment."""
    rows = {f"{way}, {clients}": each.row() for (way, clients), each in samples.items()}
    pairs = zip(samples["paid", 8].rates, samples["free", 8].rates, strict=True)
    free, paid = rows["free, 1"], rows["paid, 1"]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg(),
        "ways": rows,
        "payment_adds_p10_ms": round(paid["p10_ms"] - free["p10_ms"], 3),
        "payment_adds_p50_ms": round(paid["p50_ms"] - free["p50_ms"], 3),
        "payment_adds_cpu_ms": round(paid["cpu_ms"] - free["cpu_ms"], 3),
        "fsync_p10_ms": quantile(disk, 0.1),
        "fsync_p50_ms": quantile(disk, 0.5),
        "throughput_at_8": round(statistics.median(paid / free for paid, free in pairs), 3),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'way, clients':<16}{'p10 ms':>9}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}{'CPU ms':>9}"]
    lines += [
        f"{name:<16}{row['p10_ms']:>9.2f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['per_second']:>9.0f}"
        f"{row['cpu_ms']:>9.2f}"
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
    (RESULTS / "payments.json").write_text(json.dumps(outcome, indent=2) + "\n")
