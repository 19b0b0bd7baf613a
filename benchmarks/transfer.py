"""How fast does a model come from other nodes, beside plain copies and other tools?

A bundle of random bytes goes from server processes to a client process on loopback, onto the disk of
this machine; the ways take turns in each round:

  llmesh 1/3   Fetcher and store: sessions over libp2p, every block hashed, the whole hashed again, synced
  raw          one trio TCP stream, received and thrown away
  raw+disk     the same with SHA-256 of what came and a synced file
  lattica      the PyPI package `lattica` (rust-libp2p): 1 MiB a call, 4 at a time, SHA-256, synced file
  aria2 1/3    aria2c from HTTP servers that use sendfile, 3 as mirrors, with --checksum; includes its start

Then: how much is sent again after a SIGKILL of the client at 50 %, counted by the servers; and what
small inferences (echo runtime) on the very session take while it carries a transfer, and beside it.
Absolute figures move with the machine and its neighbours: trust the medians of each round's ratios.

Usage: python benchmarks/transfer.py [--rounds 5] [--megabytes 100] [--ways llmesh1,raw,...]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from llmesh import crypto
from llmesh.core import binding
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.credentials import Credentials
from llmesh.core.genesis import Genesis, sign_genesis
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Attempt
from llmesh.core.manifest import BLOCK, Block
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.core.signer import Signer
from llmesh.core.typed import Chain
from llmesh.journal.open import open_journal
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.download import Progress
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.provider import Provider
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.seeder import open_seeder
from llmesh.mesh.till import Till
from llmesh.net import artifact, inference
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.net.sessions import Sessions, open_sessions
from llmesh.net.throttle import Throttle
from llmesh.runtime.blocks import held_blocks, make_manifest
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.echo import EchoRuntime
from llmesh.runtime.store import open_store

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
WAYS = ["llmesh1", "llmesh3", "raw", "raw+disk", "lattica", "aria2x1", "aria2x3"]
# Least medians of the ratios of bytes per second, llmesh1 to the other.
AIMS = {"raw": 0.1, "lattica": 0.9}
CALLERS = 4
PAUSE = 0.005


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def requests() -> Iterator[Any]:
    """What the parent asks, one JSON value a line."""
    for line in sys.stdin:
        yield json.loads(line)
    os._exit(0)


async def next_request() -> Any:
    line = await trio.to_thread.run_sync(sys.stdin.readline)
    return json.loads(line) if line else os._exit(0)


def make_model(folder: Path, size: int) -> None:
    """Random bytes that are an ONNX file as far as the store looks."""
    length, varint = size, b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    folder.mkdir(parents=True)
    with (folder / "model.onnx").open("wb") as file:
        file.write(b"\x3a\0\x12" + varint + bytes([length]))
        for start in range(0, size, 1 << 20):
            file.write(secrets.token_bytes(min(1 << 20, size - start)))


# --- llmesh -----------------------------------------------------------------------------------


@dataclass
class Counted:
    """A replica that notes what it gave."""

    inner: artifact.Replica
    sent: list[tuple[str, int]]

    @property
    def manifest(self) -> Any:
        return self.inner.manifest

    async def read(self, block: Block) -> bytes:
        self.sent.append((block.path, block.number))
        return await self.inner.read(block)


def credentials(peer: PeerId, seed: bytes) -> Credentials:
    """An account of nobody else's, on a ledger of its own."""
    owner = Signer(Address(crypto.address_of(seed)), crypto.signer(seed))
    return Credentials(
        peer, Chain(1 << 40, owner.address), owner, lambda record: crypto.sign(seed, binding.DOMAIN, record)
    )


def lone_ledger(own: Credentials) -> MemoryLedger:
    """A ledger without money: what is served here is free."""
    genesis = Genesis(own.signer.address, (), Amount(0), 0, int(time.time()))
    return MemoryLedger(sign_genesis(genesis, own.signer.sign), own.signer.sign, time.time)


async def serve_llmesh(folder: Path) -> None:
    bundle = await read_bundle(folder)
    sent: list[tuple[str, int]] = []
    seed = secrets.token_bytes(32)
    async with (
        open_libp2p_host(seed, listen=[LOOPBACK], judge=lambda _: None) as host,
        open_journal(folder.with_suffix(f".{host.peer_id}"), host.peer_id) as journal,
        open_seeder(lambda id: bundle if id == bundle.id else None) as seeder,
    ):

        @asynccontextmanager
        async def serve(model: ModelId, peer: PeerId) -> AsyncGenerator[artifact.Replica]:
            async with seeder.serve(model, peer) as replica:
                yield Counted(replica, sent)

        own = credentials(host.peer_id, seed)
        provider = Provider(host.peer_id, EchoRuntime(), Till(own, journal, lone_ledger(own), time.time))
        await provider.deploy(bundle, Card("echo"), Amount(0))
        handlers = {
            artifact.PROTOCOL: artifact.handler(serve, Throttle()),
            inference.PROTOCOL: inference.handler(provider.serve),
        }
        async with open_sessions(host, handlers):
            async with seeder.serve(bundle.id, host.peer_id):
                pass  # the manifest is made once
            answer([host.peer_id, list(host.addresses), bundle.id])
            while True:
                await next_request()
                answer([time.process_time(), sent])
                sent.clear()


class Board:
    """The offers that discovery would know."""

    def __init__(self, servers: list[Any]) -> None:
        offer = lambda id: Offer(ModelId(id), Card("echo"), "raw-tensors", Amount(0))  # noqa: E731
        self.known = [
            Announcement(PeerId(peer), 1, tuple(addresses), (offer(id),), Amount(0), 0, 1 << 40)
            for peer, addresses, id in servers
        ]

    def lookup(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        return [(announcement.offers[0], announcement) for announcement in self.known]

    async def find(self, ref: ModelRef) -> None:
        pass


async def fetch(sessions: Sessions, peer: PeerId, servers: list[Any], folder: Path, tell: bool) -> None:
    def report(progress: Progress) -> None:
        if tell:
            answer(progress.done / progress.total)

    store = await open_store(folder)
    fetcher = Fetcher(peer, store, sessions, Board(servers), Reputation(lambda _: False), Throttle())
    await fetcher.fetch(ModelRef("", id=ModelId(servers[0][2])), report)


async def drive_llmesh() -> None:
    async with (
        open_libp2p_host(secrets.token_bytes(32), listen=[LOOPBACK], judge=lambda _: None) as host,
        open_sessions(host, {}) as sessions,
    ):
        answer("ready")
        while True:
            request = await next_request()
            for peer, addresses, _ in request["servers"]:
                await sessions.to(peer, addresses)
            start, cpu = time.perf_counter(), time.process_time()
            if "seconds" in request:
                result = await small_calls(sessions, request, host.peer_id)
            else:
                await fetch(
                    sessions, host.peer_id, request["servers"], Path(request["folder"]), request["tell"]
                )
                result = None
            answer({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu, "laps": result})


async def small_calls(sessions: Sessions, request: Any, own: PeerId) -> list[float]:
    """Inferences at a steady pace from a few callers, while models come in or not."""
    laps: list[float] = []
    peer, addresses, id = request["servers"][0]
    session = await sessions.to(peer, addresses)
    end = time.perf_counter() + request["seconds"]

    async def call() -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            attempt = Attempt(
                RequestId(secrets.token_hex(16)), 1, ModelId(id), {"text": "hi"}, Amount(0), 30.0
            )
            async with inference.ask(session, attempt) as events:
                async for _ in events:
                    pass
            laps.append(time.perf_counter() - start)
            await trio.sleep(PAUSE)

    async def transfers() -> None:
        while True:
            folder = Path(request["folder"]) / secrets.token_hex(4)
            await fetch(sessions, own, request["servers"], folder, False)
            shutil.rmtree(folder)

    async with trio.open_nursery() as bulk:
        if request["bulk"]:
            bulk.start_soon(transfers)
            await trio.sleep(0.2)
            end += 0.2
        async with trio.open_nursery() as callers:
            for _ in range(CALLERS):
                callers.start_soon(call)
        bulk.cancel_scope.cancel()
    return laps


# --- a plain copy -----------------------------------------------------------------------------


async def serve_raw(folder: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        with (folder / "model.onnx").open("rb") as file:
            while data := file.read(BLOCK):
                await stream.send_all(data)
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        answer(listener.socket.getsockname()[1])
        while True:
            await next_request()
            answer([time.process_time(), []])


async def drive_raw(disk: bool) -> None:
    answer("ready")
    while True:
        request = await next_request()
        start, cpu = time.perf_counter(), time.process_time()
        stream = await trio.open_tcp_stream("127.0.0.1", request["servers"][0])
        digest = hashlib.sha256()
        Path(request["folder"]).mkdir(parents=True)
        with (Path(request["folder"]) / "copy").open("wb") as file:
            while data := await stream.receive_some(1 << 20):
                if disk:
                    digest.update(data)
                    file.write(data)
            file.flush()
            if disk:
                os.fsync(file.fileno())
        answer({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu})


# --- lattica ----------------------------------------------------------------------------------


def lattica_service(node: Any, folder: Path | None) -> Any:
    import lattica

    class Files(lattica.ConnectionHandler):  # type: ignore[misc]
        @lattica.rpc_method  # type: ignore[untyped-decorator]
        def read(self, offset: int) -> bytes:
            with (Path(str(folder)) / "model.onnx").open("rb") as file:
                file.seek(offset)
                return file.read(BLOCK)

    return Files(node)


def serve_lattica(folder: Path) -> None:
    from lattica import Lattica

    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"  # it does not tell which it took
    node = Lattica.builder().with_listen_addrs([address]).with_mdns(False).build()
    service = lattica_service(node, folder)
    answer([node.peer_id(), address])
    for _ in requests():
        answer([time.process_time(), []])
    del service


async def drive_lattica() -> None:
    from lattica import Lattica

    answer("ready")
    stub = None
    while True:
        request = json.loads(await asyncio.to_thread(sys.stdin.readline) or os._exit(0))
        if stub is None:
            peer, address = request["servers"][0]
            builder = Lattica.builder().with_bootstraps([f"{address}/p2p/{peer}"])
            node = builder.with_listen_addrs([LOOPBACK]).with_mdns(False).build()
            stub = lattica_service(node, None).get_stub(peer)
            await asyncio.sleep(1.5)
        start, cpu = time.perf_counter(), time.process_time()
        offsets = iter(range(0, request["size"], BLOCK))
        Path(request["folder"]).mkdir(parents=True)
        handle = os.open(Path(request["folder"]) / "copy", os.O_WRONLY | os.O_CREAT)

        def keep(data: bytes, offset: int) -> bytes:
            os.pwrite(handle, data, offset)  # noqa: B023
            return hashlib.sha256(data).digest()

        async def draw() -> None:
            for offset in offsets:  # noqa: B023
                await asyncio.to_thread(keep, await stub.read(offset), offset)  # noqa: B023

        await asyncio.gather(*(draw() for _ in range(4)))
        os.fsync(handle)
        os.close(handle)
        answer({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu})


# --- aria2 ------------------------------------------------------------------------------------


def serve_http(folder: Path) -> None:
    """Just enough HTTP for a client that asks for ranges; the kernel does the copying."""
    path = folder / "model.onnx"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, path.open("rb") as file, suppress(OSError):
            reader = connection.makefile("rb")
            while line := reader.readline():
                headers = {}
                while (header := reader.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    headers[name.lower()] = value.strip().decode()
                size = path.stat().st_size
                first, _, last = headers.get(b"range", "bytes=0-").removeprefix("bytes=").partition("-")
                begin, end = int(first), int(last or size - 1)
                connection.sendall(
                    f"HTTP/1.1 {'206 Partial' if b'range' in headers else '200 OK'}\r\n"
                    f"Content-Length: {end - begin + 1}\r\nAccept-Ranges: bytes\r\n"
                    f"Content-Range: bytes {begin}-{end}/{size}\r\n\r\n".encode()
                )
                while begin <= end and not line.startswith(b"HEAD"):
                    begin += os.sendfile(connection.fileno(), file.fileno(), begin, end + 1 - begin)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    answer(listener.getsockname()[1])
    for _ in requests():
        answer([time.process_time(), []])


def drive_aria2() -> None:
    answer("ready")
    for request in requests():
        start, before = time.perf_counter(), os.times()
        urls = [f"http://127.0.0.1:{port}/model.onnx" for port in request["servers"]]
        subprocess.run(
            ["aria2c", "-q", "--file-allocation=none", f"--checksum=sha-256={request['sha256']}",
             f"--split={len(urls)}", "--min-split-size=1M", "-d", request["folder"], "-o", "copy", *urls],
            check=True,
        )  # fmt: skip
        file = os.open(Path(request["folder"]) / "copy", os.O_RDONLY)
        os.fsync(file)
        os.close(file)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        answer({"wall": time.perf_counter() - start, "cpu": cpu})


# --- one process per role ---------------------------------------------------------------------


def serve(way: str, folder: Path) -> None:
    match way:
        case "llmesh":
            trio.run(serve_llmesh, folder)
        case "raw":
            trio.run(serve_raw, folder)
        case "lattica":
            serve_lattica(folder)
        case _:
            serve_http(folder)


def drive(way: str) -> None:
    match way:
        case "llmesh":
            trio.run(drive_llmesh)
        case "raw" | "raw+disk":
            trio.run(drive_raw, way == "raw+disk")
        case "lattica":
            asyncio.run(drive_lattica())
        case _:
            drive_aria2()


class Process:
    """A process of ours that answers JSON lines with JSON lines."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self.read()

    def tell(self, request: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()

    def ask(self, request: object) -> Any:
        self.tell(request)
        return self.read()

    def read(self) -> Any:
        assert self.popen.stdout is not None
        while line := self.popen.stdout.readline():
            with suppress(ValueError):  # lattica prints lines of its own
                return json.loads(line)
        raise SystemExit(f"a process of the benchmark died: {self.popen.args}")

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


@dataclass
class Sample:
    """One transfer: seconds, CPU seconds of the client and of all servers."""

    wall: float
    client: float
    servers: float


@dataclass
class Way:
    """Servers and a client of one kind."""

    name: str
    model: Path
    processes: list[Process] = field(default_factory=list)
    client: Process | None = None

    def open(self) -> None:
        kind = self.name.rstrip("13").rstrip("x")
        count = 3 if self.name.endswith("3") else 1
        server = kind.removesuffix("+disk")
        self.processes = [Process("--serve", server, "--folder", str(self.model)) for _ in range(count)]
        self.client = Process("--drive", kind)

    @property
    def addresses(self) -> list[Any]:
        return [process.first for process in self.processes]

    def cpu(self) -> float:
        return sum(process.ask(None)[0] for process in self.processes)

    def run(self, folder: Path, about: dict[str, Any]) -> Sample:
        before = self.cpu()
        assert self.client is not None
        request = {"servers": self.addresses, "folder": str(folder), "tell": False, **about}
        result = self.client.ask(request)
        shutil.rmtree(folder, ignore_errors=True)
        return Sample(result["wall"], result["cpu"], self.cpu() - before)

    def close(self) -> None:
        for process in [*self.processes, *([self.client] if self.client else [])]:
            process.kill()


# --- the questions ----------------------------------------------------------------------------


def available(way: str) -> bool:
    if way == "lattica":
        try:
            import lattica  # noqa: F401
        except ImportError:
            print("lattica is not installed: skipped (pip install --no-deps lattica)")
            return False
    if way.startswith("aria2") and shutil.which("aria2c") is None:
        print("aria2c is not installed: skipped (apt install aria2)")
        return False
    return True


def compare_speed(names: list[str], rounds: int, model: Path, scratch: Path) -> list[dict[str, Any]]:
    size = (model / "model.onnx").stat().st_size
    digest = hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()
    ways = [Way(name, model) for name in names if available(name)]
    samples: dict[str, list[Sample]] = {way.name: [] for way in ways}
    try:
        for way in ways:
            way.open()
        for lap in range(rounds + 1):  # the first lap warms up
            for way in ways:
                sample = way.run(scratch / f"{way.name}-{lap}", {"size": size, "sha256": digest})
                samples[way.name] += [sample] if lap else []
    finally:
        for way in ways:
            way.close()
    return [speed_row(name, samples, size) for name in samples]


def speed_row(name: str, samples: dict[str, list[Sample]], size: int) -> dict[str, Any]:
    own = samples[name]
    row: dict[str, Any] = {
        "way": name,
        "mb_per_s": size / 1e6 / statistics.median(sample.wall for sample in own),
        "client_cpu_s": statistics.median(sample.client for sample in own),
        "servers_cpu_s": statistics.median(sample.servers for sample in own),
    }
    cpu = f"CPU {row['client_cpu_s']:.2f} + {row['servers_cpu_s']:.2f} s"
    text = f"{name:<9} {row['mb_per_s']:>7.0f} MB/s   {cpu}"
    if name != "llmesh1" and "llmesh1" in samples:
        pairs = zip(samples["llmesh1"], own, strict=True)
        row["ratio"] = statistics.median(theirs.wall / ours.wall for ours, theirs in pairs)
        row["aim"] = aim = AIMS.get(name)
        text += f"   llmesh1/{name} = {row['ratio']:.2f}"
        text += f" (aim {aim}: {'reached' if row['ratio'] >= aim else 'MISSED'})" if aim else ""
    print(text, flush=True)
    return row


def resume(sources: int, model: Path, scratch: Path) -> dict[str, Any]:
    """Kill the client at 50 %, start another on the same folder; what do the servers send twice?"""
    bundle = trio.run(read_bundle, model)
    manifest = trio.run(trio.to_thread.run_sync, make_manifest, bundle)
    folder = scratch / f"resume-{sources}"
    way = Way(f"llmesh{sources}", model)
    way.open()
    assert way.client is not None
    try:
        way.client.tell({"servers": way.addresses, "folder": str(folder), "tell": True})
        while way.client.read() < 0.5:
            pass
        way.client.kill()
        first = [tuple(each) for process in way.processes for each in process.ask(None)[1]]
        partial = folder / "staging" / f"{bundle.id}.partial"
        held = trio.run(trio.to_thread.run_sync, held_blocks, partial, manifest)
        way.client = Process("--drive", "llmesh")
        result = way.client.ask({"servers": way.addresses, "folder": str(folder), "tell": False})
        second = [Block(*each) for process in way.processes for each in process.ask(None)[1]]
    finally:
        way.close()
    again = [block for block in second if block in held]
    row = {
        "sources": sources,
        "blocks": sum(1 for _ in manifest.blocks()),
        "sent_before": len(first),
        "held_at_kill": len(held),
        "sent_after": len(second),
        "verified_sent_again": len(again),
        "seconds_after": result["wall"],
    }
    print(f"kill at 50 %, {sources} source(s): {row}", flush=True)
    shutil.rmtree(folder)
    return row


def latency(rounds: int, model: Path, scratch: Path) -> dict[str, Any]:
    """Small inferences on the session, quiet and beside a transfer, in turns."""
    way = Way("llmesh1", model)
    way.open()
    assert way.client is not None
    laps: dict[bool, list[list[float]]] = {False: [], True: []}
    try:
        for lap in range(rounds + 1):
            for bulk in (False, True):
                request = {
                    "servers": way.addresses,
                    "seconds": 2.0,
                    "bulk": bulk,
                    "folder": str(scratch / "bulk"),
                }
                result = way.client.ask(request)["laps"]
                laps[bulk] += [sorted(result)] if lap else []
    finally:
        way.close()
    row: dict[str, Any] = {}
    for share, aim in ((0.5, 2.0), (0.99, 3.0)):
        name = f"p{share * 100:.0f}"
        quiet, busy = (
            [lap[math.ceil(len(lap) * share) - 1] * 1e3 for lap in laps[bulk]] for bulk in (False, True)
        )
        ratio = statistics.median(b / q for b, q in zip(busy, quiet, strict=True))
        row |= {
            f"{name}_quiet_ms": statistics.median(quiet),
            f"{name}_busy_ms": statistics.median(busy),
            f"{name}_ratio": ratio,
        }
        verdict = "reached" if ratio <= aim else "MISSED"
        print(
            f"inference {name}: quiet {statistics.median(quiet):.2f} ms, beside a transfer"
            f" {statistics.median(busy):.2f} ms, ratio {ratio:.2f} (aim {aim}: {verdict})",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
    elif options.drive:
        drive(options.drive)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            make_model(model, options.megabytes * 1_000_000)
            write(
                {
                    "megabytes": options.megabytes,
                    "speed": compare_speed(options.ways.split(","), options.rounds, model, Path(scratch)),
                    "resumption": [resume(sources, model, Path(scratch)) for sources in (1, 3)],
                    "latency": latency(options.rounds, model, Path(scratch)),
                }
            )


def write(found: dict[str, Any]) -> None:
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
    (results / "transfer.json").write_text(json.dumps({"on": machine, **found}, indent=2))
    print(f"written to {results / 'transfer.json'}")


if __name__ == "__main__":
    main()
