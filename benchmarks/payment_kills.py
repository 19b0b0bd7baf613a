"""Does a SIGKILL of provider or payer at any moment lose an acknowledged charge, double one, or overspend?

Two nodes of one swarm, each a process: the provider serves a model for a fee, the payer's gateway is
asked for it by several clients at once, under a key with a daily budget.  In turns one of the two is
killed at a random moment, its journal is opened as it lies there (timed: that is the recovery) and it
is started again.  At the end both are stopped and their journals compared with what the clients were
told: every answer has its charge at the provider, once; no request was charged twice; each channel's
sum is that of its receipts; the payer counts no less than what its clients were told, and no more than
the provider; the key's budget holds.

Usage: python benchmarks/payment_kills.py [--kills 200] [--seed N]; exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import httpx2
import trio

from llmesh.core.amount import Amount
from llmesh.core.receipt import read_receipt
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.journal.backup import check_integrity
from llmesh.journal.channels import all_channels
from llmesh.journal.columns import Side, read_amount

MODEL, FEE, BUDGET = "paid-model", "0.001", "50"
CLIENTS = 4
PAUSE = 0.3
"""Seconds after a refusal, so that a node that starts has the processor."""
LONGEST = 0.6
"""Seconds under load before a kill, at most."""
PATIENCE = 60.0
RECOVERY = 0.2


@dataclass
class Node:
    """A node of this run, whichever process it is now."""

    folder: Path
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    recoveries: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0", "--data-dir", str(self.folder),
            "--limits", "off", *self.arguments,
        ]  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        with trio.fail_after(PATIENCE):
            while (facts := self._facts()) is None:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                await trio.sleep(0.05)
        self.url = facts["url"]

    def kill(self) -> None:
        """SIGKILL; then open its journal."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        began = time.perf_counter()
        db = apsw.Connection(str(self.folder / "journal.db"))
        db.execute("BEGIN IMMEDIATE; ROLLBACK")
        self.recoveries.append(time.perf_counter() - began)
        check_integrity(db)
        db.close()

    async def stop(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        await trio.to_thread.run_sync(self.process.wait)

    def verb(self, *arguments: str) -> str:
        """What a verb of the command line prints."""
        command = [sys.executable, "-m", "llmesh.node", *arguments, "--data-dir", str(self.folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _facts(self) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "node.json").read_text())
        except (OSError, ValueError):
            return None
        assert self.process is not None
        return facts if facts["pid"] == self.process.pid else None


@dataclass
class Told:
    """What the clients were told."""

    answers: dict[str, Amount] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    news: trio.Event = field(default_factory=trio.Event)


async def client(payer: Node, key: str, told: Told) -> None:
    """Ask without end; whatever is not an answer is counted."""
    body = {"model": MODEL, "input": "这太棒了！", "timeout": 20}
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        while True:
            try:
                answer = await http.post(f"{payer.url}/api/v1/inference", json=body)
                said = answer.json()
            except (httpx2.HTTPError, ValueError) as error:
                told.refusals[type(error).__name__] += 1
                await trio.sleep(PAUSE)
                continue
            if answer.status_code == 200:
                told.answers[said["request_id"]] = Amount.parse(str(said["fee"]))
                told.news.set()
            else:
                told.refusals[said.get("name", "?")] += 1
                await trio.sleep(PAUSE)


async def answered(told: Told, more: int) -> None:
    """Wait until so many more were answered."""
    wanted = len(told.answers) + more
    with trio.fail_after(PATIENCE):
        while len(told.answers) < wanted:
            told.news = trio.Event()
            await told.news.wait()


async def run(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """All kills, and what was found."""
    shutil.copytree(SENTIMENT_ANALYZER, folder / MODEL)
    deploy = ["--deploy", f"{folder / MODEL},name={MODEL},fee={FEE}"]
    provider = Node(folder / "provider", [*listen(), *deploy])
    await provider.start()
    line = next(word for word in provider.verb("invite", "--credit", "5000").split() if "llmesh1-" in word)
    payer = Node(folder / "payer", [*listen(), "--join", line])
    await payer.start()
    made = payer.verb("keys", "create", "--name", "load", "--budget", BUDGET, "--json")
    key = json.loads(made)["key"]
    told = Told()
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(client, payer, key, told)
        await answered(told, CLIENTS)
        for number in range(kills):
            victim = (provider, payer)[number % 2]
            await trio.sleep(rng.uniform(0.02, LONGEST))
            victim.kill()
            began = trio.current_time()
            await victim.start()
            victim.starts.append(trio.current_time() - began)
            await answered(told, 1)
            victim.returns.append(trio.current_time() - began)
            print(f"kill {number + 1} of {kills}", file=sys.stderr)
        await answered(told, CLIENTS)
        nursery.cancel_scope.cancel()
    await trio.sleep(2)  # syncs and lazy receipts
    await payer.stop()
    await provider.stop()
    return judged(told, provider, payer)


def judged(told: Told, provider: Node, payer: Node) -> dict[str, Any]:
    """The journals against what the clients know."""
    charged = receipts(provider, Side.PROVIDER)
    counts = Counter(request for request, _, _ in charged)
    prices = {request: price for request, price, _ in charged}
    sums: Counter[bytes] = Counter()
    for _, price, channel in charged:
        sums[channel] += price
    sold = {row.id: row.charged.micro for row in channels(provider, Side.PROVIDER)}
    spent = {row.id: row.charged.micro for row in channels(payer, Side.PAYER)}
    acknowledged = sum(fee.micro for fee in told.answers.values())
    recoveries = sorted(provider.recoveries + payer.recoveries)
    return {
        "kills": len(recoveries),
        "acknowledged": len(told.answers),
        "refusals": dict(told.refusals),
        "lost": sum(prices.get(request) != fee.micro for request, fee in told.answers.items()),
        "doubled": sum(count > 1 for count in counts.values()),
        "sums wrong": sum(sums[channel] != total for channel, total in sold.items()),
        "spent unknown to the payer": max(0, acknowledged - sum(spent.values())),
        "spent beyond the charges": sum(max(0, total - sold.get(mark, 0)) for mark, total in spent.items()),
        "over budget": max(0, sum(sold.values()) - Amount.parse(BUDGET).micro),
        "charged": sum(sold.values()),
        "provider back p50 s": median(provider.returns),
        "provider started p50 s": median(provider.starts),
        "payer back p50 s": median(payer.returns),
        "payer started p50 s": median(payer.starts),
        "recovery p50 s": round(recoveries[len(recoveries) // 2], 4),
        "recovery worst s": round(recoveries[-1], 4),
    }


def median(seconds: list[float]) -> float:
    return round(statistics.median(seconds), 2)


def receipts(node: Node, side: Side) -> list[tuple[str, int, bytes]]:
    """Request, price and channel of each receipt with a price."""
    db = apsw.Connection(str(node.folder / "journal.db"))
    rows = db.execute("SELECT request, fee, signed FROM receipt WHERE side = ?", (side,))
    found = []
    for request, fee, signed in rows:
        price = read_amount(fee).micro
        if price:
            found.append((request, price, bytes(read_receipt(signed).charge.channel)))
    db.close()
    return found


def channels(node: Node, side: Side) -> list[Any]:
    """The channels of one end."""
    db = apsw.Connection(str(node.folder / "journal.db"))
    rows = all_channels(db, side)
    db.close()
    return rows


def listen() -> list[str]:
    """An address that stays the same over restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return ["--listen", f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"]


FAULTS = (
    "lost", "doubled", "sums wrong", "spent unknown to the payer", "spent beyond the charges", "over budget",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=400, help="of both together")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory() as folder:
        result = trio.run(run, chosen.kills, random.Random(seed), Path(folder))
    result |= {"seed": seed, "recovery in time": result["recovery worst s"] < RECOVERY}
    print(json.dumps(result, indent=2))
    return 1 if any(result[fault] for fault in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
