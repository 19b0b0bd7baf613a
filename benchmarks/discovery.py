"""How fast offers are found, and what it costs to know the mesh, with real libp2p on one machine.

Two processes share the nodes.  Per size of mesh: from deploying on one node to the offer in every other
node's directory; from starting a node to a full directory; lookups that fail although somebody offers
the model; and what a node at rest costs: bytes and messages sent (all of TCP's payload, the hash table's
too), CPU.  At rest means: every node announces one model, nothing changes, the window starts after
unused sessions are closed.  CPU times of nodes on a busy machine are upper bounds.

Prints a table and writes benchmarks/results/discovery.json.

Usage: python benchmarks/discovery.py [--nodes 20 60] [--deployments 20] [--joins 5] [--rest 120]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio

from llmesh import crypto
from llmesh.core import binding
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import DOMAIN, Offer, read_packed
from llmesh.core.credentials import Credentials
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.core.signer import Signer
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed
from llmesh.mesh.announcer import Announcer, Author
from llmesh.mesh.discovery import Discovery, DiscoverySettings, open_discovery
from llmesh.net.host import Host, PeerAddress
from llmesh.net.libp2p.host import open_libp2p_host

PROCESSES = 2
SETTLING = 150.0
"""Seconds until sessions that were only opened to meet the mesh have been closed."""
PATIENCE = 30.0
POLL = 0.005
RESULTS = Path(__file__).parent / "results"


# --- a process with some of the nodes -----------------------------------------------------------


@dataclass
class Node:
    host: Host
    discovery: Discovery
    announcer: Announcer
    scope: trio.CancelScope

    def knows(self, name: str) -> bool:
        return bool(self.discovery.lookup(ModelRef(name)))


@dataclass
class Traffic:
    """Bytes and writes that left this process's sockets."""

    sent: int = 0
    writes: int = 0


def count_traffic() -> Traffic:
    traffic = Traffic()
    send_all = trio.SocketStream.send_all

    async def counted(stream: trio.SocketStream, data: Any) -> None:
        traffic.sent += len(data)
        traffic.writes += 1
        await send_all(stream, data)

    trio.SocketStream.send_all = counted  # type: ignore[method-assign]
    return traffic


def offer(name: str) -> Offer:
    id = ModelId(hashlib.sha256(name.encode()).hexdigest())
    card = Card(name, "1.0.0", "A small text classifier that says whether a review is good or bad.", "MIT")
    return Offer(id, card, "text-classification", Amount.parse("0.1"))


def judge(packed: bytes) -> tuple[PeerId, int] | None:
    try:
        announcement = read_packed(packed, now=time.time()).announcement
    except ValidationFailed:
        return None
    return announcement.peer_id, announcement.sequence


@asynccontextmanager
async def open_node(number: int, bootstrap: list[Any]) -> AsyncIterator[Node]:
    seed = hashlib.sha256(f"benchmark {os.getppid()} {number}".encode()).digest()
    contacts = [PeerAddress(PeerId(peer), tuple(addresses)) for peer, addresses in bootstrap]
    async with (
        open_libp2p_host(seed, listen=["/ip4/127.0.0.1/tcp/0"], judge=judge) as host,
        open_discovery(host, {}, DiscoverySettings(bootstrap=contacts)) as discovery,
        trio.open_nursery() as nursery,
    ):
        author = Author(
            host.peer_id,
            sign=lambda payload: crypto.sign(seed, DOMAIN, payload),
            next_sequence=count(1).__next__,
            addresses=lambda: host.addresses,
            credentials=Credentials(
                host.peer_id,
                Chain(1 << 40, Address(crypto.address_of(seed))),
                Signer(Address(crypto.address_of(seed)), crypto.signer(seed)),
                lambda record: crypto.sign(seed, binding.DOMAIN, record),
            ),
        )
        announcer = Announcer(author, discovery, stake=Amount.parse(1000), min_stake=Amount(0))
        nursery.start_soon(announcer.run)
        yield Node(host, discovery, announcer, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


class Process:
    """Serves commands, one line of JSON each, from standard input; every command is a task."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.traffic = count_traffic()

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            buffer = b""
            async for data in trio.lowlevel.FdStream(os.dup(0)):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.nursery.start_soon(self.serve, json.loads(line))
            self.nursery.cancel_scope.cancel()

    async def serve(self, command: dict[str, Any]) -> None:
        verb = getattr(self, command.pop("do"))
        id = command.pop("id")
        print(json.dumps({"id": id, "answer": await verb(**command)}), flush=True)

    async def start(self, number: int, bootstrap: list[Any]) -> list[Any]:
        node = await self.nursery.start(self._keep, number, bootstrap)
        return [node.host.peer_id, node.host.addresses]

    async def _keep(self, number: int, bootstrap: list[Any], task_status: Any) -> None:
        async with open_node(number, bootstrap) as node:
            self.nodes[number] = node
            task_status.started(node)
            await trio.sleep_forever()

    async def offer(self, number: int, name: str) -> float:
        at = time.time()
        self.nodes[number].announcer.offer(offer(name))
        return at

    async def watch(self, name: str) -> list[float]:
        """When each node of this process knew the name; inf for never."""
        waiting = dict(self.nodes)
        found: list[float] = []
        with trio.move_on_after(PATIENCE):
            while waiting:
                for number in [n for n, node in waiting.items() if node.knows(name)]:
                    del waiting[number]
                    found.append(time.time())
                await trio.sleep(POLL)
        return found + [math.inf] * len(waiting)

    async def join(self, number: int, bootstrap: list[Any], expected: int) -> dict[str, float]:
        """A new node; seconds until it runs and until it holds everything."""
        started = time.perf_counter()
        with trio.move_on_after(PATIENCE):
            async with open_node(number, bootstrap) as node:
                running = time.perf_counter() - started
                while len(node.discovery.directory) < expected:  # noqa: ASYNC110
                    await trio.sleep(POLL)
                return {"running": running, "full": time.perf_counter() - started}
        return {"running": running, "full": math.inf}

    async def look_up(self, number: int, names: list[str]) -> int:
        """How many of the names a node that has just joined the mesh cannot find."""
        node = self.nodes[number]
        failed = 0
        for name in names:
            if not node.knows(name):
                await node.discovery.find(ModelRef(name))
            failed += not node.knows(name)
        return failed

    async def figures(self) -> dict[str, Any]:
        """Counters of the process, and how many sessions and announcements its nodes have."""
        return {
            "cpu": time.process_time(),
            "sent": self.traffic.sent,
            "writes": self.traffic.writes,
            "sessions": [len(node.discovery.sessions.live()) for node in self.nodes.values()],
            "known": [len(node.discovery.directory) for node in self.nodes.values()],
        }


# --- the measuring side ---------------------------------------------------------------------------


@dataclass
class Remote:
    """A process as seen from here; `ask` waits for the answer, `send` and `result` do it in two steps."""

    process: subprocess.Popen[bytes] = field(
        default_factory=lambda: subprocess.Popen(
            [sys.executable, __file__, "--process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
    answers: dict[int, Any] = field(default_factory=dict)
    ids: Callable[[], int] = field(default_factory=lambda: count(1).__next__)

    def send(self, do: str, **arguments: Any) -> int:
        id = self.ids()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "id": id, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return id

    def result(self, id: int) -> Any:
        assert self.process.stdout is not None
        while id not in self.answers:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("a process of the benchmark died")
            answer = json.loads(line)
            self.answers[answer["id"]] = answer["answer"]
        return self.answers.pop(id)

    def ask(self, do: str, **arguments: Any) -> Any:
        return self.result(self.send(do, **arguments))

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


class Mesh:
    def __init__(self, size: int) -> None:
        self.size = size
        self.processes = [Remote() for _ in range(PROCESSES)]
        self.contacts: list[Any] = []
        for number in range(size):
            bootstrap = random.sample(self.contacts, min(2, len(self.contacts)))
            self.contacts.append(self.of(number).ask("start", number=number, bootstrap=bootstrap))
            time.sleep(0.1)

    def of(self, number: int) -> Remote:
        return self.processes[number % PROCESSES]

    def all(self, do: str, **arguments: Any) -> list[Any]:
        ids = [(process, process.send(do, **arguments)) for process in self.processes]
        return [process.result(id) for process, id in ids]

    def calm_down(self) -> None:
        """Wait until the nodes have joined the hash table, which takes seconds of CPU each."""
        for _ in range(30):
            before = sum(each["cpu"] for each in self.all("figures"))
            time.sleep(6)
            if sum(each["cpu"] for each in self.all("figures")) - before < 0.1 * 6 * PROCESSES:
                break

    def announce_everyone(self) -> None:
        for number in range(self.size):
            self.of(number).ask("offer", number=number, name=f"model-{number}")
            time.sleep(0.2)

    def deployments(self, times: int) -> dict[str, float]:
        """Each on another node: until every other directory has it."""
        delays: list[float] = []
        for turn in range(times):
            number, name = turn % self.size, f"deployed-{turn}"
            watches = [(process, process.send("watch", name=name)) for process in self.processes]
            time.sleep(0.05)
            at = self.of(number).ask("offer", number=number, name=name)
            found = [moment - at for process, id in watches for moment in process.result(id)]
            delays += sorted(found)[1:]  # the first is the deployer itself
            time.sleep(0.5)
        return {
            "found_p50": percentile(delays, 0.5),
            "found_p99": percentile(delays, 0.99),
            "found_worst": max(delays),
            "samples": len(delays),
            "never": sum(map(math.isinf, delays)),
        }

    def joins(self, times: int) -> dict[str, float]:
        full, running = [], []
        for turn in range(times):
            bootstrap = random.sample(self.contacts, 2)
            took = self.processes[turn % PROCESSES].ask(
                "join", number=10_000 + turn, bootstrap=bootstrap, expected=self.size
            )
            full.append(took["full"])
            running.append(took["running"])
        return {
            "running": percentile(running, 0.5),
            "full_p50": percentile(full, 0.5),
            "full_worst": max(full),
        }

    def lookups(self) -> dict[str, int]:
        """Right after starting, a node looks up every model there is."""
        names = [f"model-{number}" for number in range(self.size)]
        number = 20_000
        process = self.processes[0]
        process.ask("start", number=number, bootstrap=[random.choice(self.contacts)])
        time.sleep(0.3)
        return {"looked_up": len(names), "failed": process.ask("look_up", number=number, names=names)}

    def rest(self, seconds: float) -> dict[str, Any]:
        """What a node sends and computes in a minute while nothing changes."""
        time.sleep(SETTLING)
        before = self.all("figures")
        time.sleep(seconds)
        after = self.all("figures")
        nodes = sum(len(each["sessions"]) for each in after)
        per_node_minute = 60 / seconds / nodes
        grown = {
            key: sum(a[key] - b[key] for a, b in zip(after, before, strict=True))
            for key in ("cpu", "sent", "writes")
        }
        sessions = sorted(n for each in after for n in each["sessions"])
        return {
            "bytes": grown["sent"] * per_node_minute,
            "messages": grown["writes"] * per_node_minute,
            "cpu_percent": 100 * grown["cpu"] / seconds / nodes,
            "sessions_median": sessions[len(sessions) // 2],
            "sessions_most": sessions[-1],
            "complete_directories": sum(n >= self.size for each in after for n in each["known"]) / nodes,
        }

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    mesh = Mesh(size)
    try:
        time.sleep(3)
        mesh.announce_everyone()
        mesh.calm_down()
        row: dict[str, Any] = {"nodes": size}
        row["deploy"] = mesh.deployments(options.deployments)
        mesh.calm_down()
        row["join"] = mesh.joins(options.joins)
        row["lookups"] = mesh.lookups()
        row["rest"] = mesh.rest(options.rest)
        return row
    finally:
        mesh.stop()


def show(rows: list[dict[str, Any]]) -> None:
    def line(what: str, tell: Callable[[dict[str, Any]], str]) -> None:
        print(f"{what:<44}" + "".join(f"{tell(row):>16}" for row in rows))

    line("nodes", lambda r: str(r["nodes"]))
    line("deploy to found, p50", lambda r: f"{1000 * r['deploy']['found_p50']:.0f} ms")
    line("deploy to found, p99", lambda r: f"{1000 * r['deploy']['found_p99']:.0f} ms")
    line("never found within 30 s", lambda r: f"{r['deploy']['never']} of {r['deploy']['samples']}")
    line("start to full directory, p50", lambda r: f"{r['join']['full_p50']:.2f} s")
    line("start to full directory, worst", lambda r: f"{r['join']['full_worst']:.2f} s")
    line(
        "lookups that fail just after joining",
        lambda r: f"{r['lookups']['failed']} of {r['lookups']['looked_up']}",
    )
    line("at rest, sent per node and minute", lambda r: f"{r['rest']['bytes'] / 1000:.2f} kB")
    line("at rest, writes per node and minute", lambda r: f"{r['rest']['messages']:.0f}")
    line("at rest, share of a core per node", lambda r: f"{r['rest']['cpu_percent']:.3f} %")
    line(
        "sessions per node, median / most",
        lambda r: f"{r['rest']['sessions_median']} / {r['rest']['sessions_most']}",
    )
    line("directories that are complete", lambda r: f"{100 * r['rest']['complete_directories']:.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--deployments", type=int, default=20)
    parser.add_argument("--joins", type=int, default=5)
    parser.add_argument("--rest", type=float, default=120.0)
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        trio.run(Process().run)
        return
    rows = [measure(size, options) for size in options.nodes]
    show(rows)
    RESULTS.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
    (RESULTS / "discovery.json").write_text(json.dumps({"on": machine, "rows": rows}, indent=2))
    print(f"written to {RESULTS / 'discovery.json'}")


if __name__ == "__main__":
    main()
