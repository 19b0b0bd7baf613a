"""What does one call over a session cost, beside bare TCP and beside a rust-libp2p binding?

Two processes per stack on loopback, closed-loop callers, the stacks taking turns in each round:

  session   a libp2p host (TCP, Noise, Yamux) and our session
  raw       trio TCP, the session's framing, one writer task that coalesces; no cipher, no credit
  lattica   the PyPI package `lattica` (skipped where it is not installed: pip install --no-deps lattica)

Bodies of 100 B and 4 KB come back whole; 600 KB go up and 100 B come back.  A call is an OPEN frame
there and a MESSAGE frame back; the session adds END.  Absolute figures move with the machine and its
neighbours, so trust the ratios: of each round's pair, the median.

Usage: python benchmarks/session.py [--rounds 5] [--seconds 0.5] [--stacks session,raw,lattica]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import trio

from llmesh.core.frames import MAX_PAYLOAD, Message, Open
from llmesh.core.framing import Splitter
from llmesh.core.outbox import Outbox
from llmesh.net.call import Call
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.net.sessions import open_sessions
from llmesh.wire.session import decode, encode

Ask: TypeAlias = Callable[[bytes], Awaitable[object]]

PROTOCOL = "/bench/echo/1.0.0"
SIZES = {"100 B": 100, "4 KB": 4096, "600 KB": 600_000}
CALLERS = (1, 8, 64)
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
# Least medians of paired ratios of calls/s, by size and callers.
AIMS = {
    ("raw", "100 B", 1): 0.28, ("raw", "100 B", 8): 0.45, ("raw", "100 B", 64): 0.5,
    ("raw", "600 KB", 8): 0.25,
    ("lattica", "100 B", 1): 1.1, ("lattica", "100 B", 8): 3.0, ("lattica", "100 B", 64): 6.0,
    ("lattica", "600 KB", 8): 0.9,
}  # fmt: skip


def answer_to(message: bytes) -> bytes:
    return message if len(message) <= 4096 else message[:100]


# --- our session ------------------------------------------------------------------------------


async def serve_session() -> None:
    async def echo(call: Call, message: bytes) -> None:
        await call.send(answer_to(message))

    async with (
        open_libp2p_host(b"s" * 32, listen=[LOOPBACK], judge=lambda _: None) as host,
        open_sessions(host, {PROTOCOL: echo}),
    ):
        announce([host.peer_id, *host.addresses])
        await trio.sleep_forever()


@asynccontextmanager
async def session_client(peer: Any, *addresses: str) -> AsyncIterator[Ask]:
    async with (
        open_libp2p_host(b"c" * 32, listen=[LOOPBACK], judge=lambda _: None) as host,
        open_sessions(host, {}) as sessions,
    ):
        session = await sessions.to(peer, addresses)

        async def ask(message: bytes) -> bytes:
            async with session.call(PROTOCOL, message) as call:
                return await call.receive()

        yield ask


# --- the same framing over plain TCP ------------------------------------------------------------


@dataclass
class RawWriter:
    """One task writes whatever is ready."""

    stream: trio.SocketStream
    outbox: Outbox = field(default_factory=Outbox)
    work: trio.Event = field(default_factory=trio.Event)

    def send(self, call: int, data: bytes) -> None:
        self.outbox.add(call, data)
        self.work.set()

    async def run(self) -> None:
        while True:
            while data := self.outbox.batch():
                await self.stream.send_all(data)
            self.work = trio.Event()
            await self.work.wait()


async def messages(stream: trio.SocketStream) -> AsyncIterator[tuple[int, bytes]]:
    splitter, parts = Splitter(), {}
    while data := await stream.receive_some(1 << 18):
        for body in splitter.feed(data):
            frame = decode(body)
            assert isinstance(frame, Open | Message)
            pieces = parts.setdefault(frame.call, [])
            pieces.append(frame.payload)
            if not frame.more:
                del parts[frame.call]
                yield frame.call, b"".join(pieces)


async def serve_raw() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        writer = RawWriter(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            async for call, message in messages(stream):
                writer.send(call, encode(Message(call, answer_to(message), False)))
            nursery.cancel_scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    announce(["127.0.0.1", listener.socket.getsockname()[1]])
    await trio.serve_listeners(serve, [listener])


@asynccontextmanager
async def raw_client(host: str, port: int) -> AsyncIterator[Ask]:
    stream = await trio.open_tcp_stream(host, port)
    writer = RawWriter(stream)
    waiting: dict[int, tuple[trio.Event, list[bytes]]] = {}
    numbers = iter(range(1, 1 << 32, 2))

    async def read() -> None:
        async for call, message in messages(stream):
            event, answer = waiting.pop(call)
            answer.append(message)
            event.set()

    async def ask(message: bytes) -> bytes:
        call, event, answer = next(numbers), trio.Event(), []
        waiting[call] = event, answer
        piece, rest = message[:MAX_PAYLOAD], message[MAX_PAYLOAD:]
        writer.send(call, encode(Open(call, PROTOCOL, 0, piece, bool(rest))))
        for start in range(0, len(rest), MAX_PAYLOAD):
            end = start + MAX_PAYLOAD
            writer.send(call, encode(Message(call, rest[start:end], end < len(rest))))
        await event.wait()
        return answer[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        nursery.start_soon(read)
        yield ask
        nursery.cancel_scope.cancel()


# --- lattica ----------------------------------------------------------------------------------


def lattica_service(node: Any) -> Any:
    import lattica

    class Echo(lattica.ConnectionHandler):  # type: ignore[misc]
        @lattica.rpc_method  # type: ignore[untyped-decorator]
        def echo(self, message: bytes) -> bytes:
            return answer_to(message)

    return Echo(node)


def serve_lattica() -> None:
    from lattica import Lattica

    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"  # it does not tell which it took
    node = Lattica.builder().with_listen_addrs([address]).with_mdns(False).build()
    service = lattica_service(node)
    announce([node.peer_id(), address])
    threading.Event().wait()
    del service


def lattica_client(peer: str, address: str) -> Ask:
    from lattica import Lattica

    node = (
        Lattica.builder()
        .with_bootstraps([f"{address}/p2p/{peer}"])
        .with_listen_addrs([LOOPBACK])
        .with_mdns(False)
        .build()
    )
    stub = lattica_service(node).get_stub(peer)
    time.sleep(1.5)

    async def ask(message: bytes) -> object:
        return await stub.echo(message)

    return ask


# --- one process per role ---------------------------------------------------------------------


def announce(value: object) -> None:
    print(json.dumps(value), flush=True)


def report_cpu() -> None:
    """Answer each line on standard input with the CPU seconds of this process; end with it."""
    for _ in sys.stdin:
        announce(time.process_time())
    os._exit(0)


def serve(stack: str) -> None:
    threading.Thread(target=report_cpu, daemon=True).start()
    if stack == "lattica":
        serve_lattica()
    else:
        trio.run({"session": serve_session, "raw": serve_raw}[stack])


async def closed_loop(ask: Ask, size: int, seconds: float, laps: list[float]) -> None:
    message = os.urandom(size)
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await ask(message)
        laps.append(time.perf_counter() - start)


async def trio_rounds(connect: Any, address: list[Any]) -> None:
    async with connect(*address) as ask:
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            size, callers, seconds = json.loads(line)
            laps: list[float] = []
            start, cpu = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(closed_loop, ask, size, seconds, laps)
            announce([laps, time.perf_counter() - start, time.process_time() - cpu])


async def asyncio_rounds(address: list[Any]) -> None:
    ask = lattica_client(*address)
    while line := await asyncio.to_thread(sys.stdin.readline):
        size, callers, seconds = json.loads(line)
        laps: list[float] = []
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(closed_loop(ask, size, seconds, laps) for _ in range(callers)))
        announce([laps, time.perf_counter() - start, time.process_time() - cpu])


def drive(stack: str, address: list[Any]) -> None:
    if stack == "lattica":
        asyncio.run(asyncio_rounds(address))
    else:
        trio.run(trio_rounds, {"session": session_client, "raw": raw_client}[stack], address)
    os._exit(0)


@dataclass
class Sample:
    """One turn of one stack: laps in seconds, CPU in seconds of both processes."""

    laps: list[float]
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        return len(self.laps) / self.wall


class Stack:
    """A server and a client process."""

    def __init__(self, name: str) -> None:
        self.server = self._start("--serve", name)
        self.client = self._start("--drive", name, "--address", self._read(self.server))

    def run(self, size: int, callers: int, seconds: float) -> Sample:
        before = float(self._ask(self.server, ""))
        laps, wall, cpu = json.loads(self._ask(self.client, json.dumps([size, callers, seconds])))
        return Sample(laps, wall, cpu + float(self._ask(self.server, "")) - before)

    def stop(self) -> None:
        for process in (self.client, self.server):
            process.kill()
            process.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, process: subprocess.Popen[str], line: str) -> str:
        stdin: IO[str] | None = process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()
        return self._read(process)

    def _read(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line[0] in "[0123456789":
                return line
        raise SystemExit(f"a process of the benchmark died: {process.args}")


# --- the table --------------------------------------------------------------------------------


def summary(samples: list[Sample]) -> dict[str, float]:
    laps = sorted(lap for sample in samples for lap in sample.laps)
    return {
        "calls_per_s": statistics.median(sample.rate for sample in samples),
        "p50_ms": laps[len(laps) // 2] * 1e3,
        "p99_ms": laps[math.ceil(len(laps) * 0.99) - 1] * 1e3,
        "cpu_us_per_call": sum(s.cpu for s in samples) / len(laps) * 1e6,
    }


def compare(name: str, callers: int, size: str, samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    rows = []
    for stack, own in samples.items():
        row: dict[str, Any] = {"size": size, "callers": callers, "stack": stack, **summary(own)}
        if stack != name:
            pairs = zip(samples[name], own, strict=True)
            row["ratio"] = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
            row["aim"] = AIMS.get((stack, size, callers))
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> None:
    verdict = ""
    if "ratio" in row:
        aim = row["aim"]
        verdict = f"session/{row['stack']} = {row['ratio']:.2f}"
        verdict += f" (aim {aim}: {'reached' if row['ratio'] >= aim else 'MISSED'})" if aim else ""
    print(
        f"{row['size']:>7} {row['callers']:>3}  {row['stack']:<8} {row['calls_per_s']:>8.0f} calls/s"
        f" {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} ms {row['cpu_us_per_call']:>7.0f} us  {verdict}",
        flush=True,
    )


def installed(stack: str) -> bool:
    if stack != "lattica":
        return True
    try:
        import lattica  # noqa: F401
    except ImportError:
        print("lattica is not installed: skipped (pip install --no-deps lattica)")
        return False
    return True


def compare_all(names: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    stacks = {name: Stack(name) for name in names if installed(name)}
    rows = []
    print("   size callers stack        calls/s      p50      p99    CPU/call (both processes)")
    try:
        for size, count in SIZES.items():
            for callers in CALLERS:
                samples: dict[str, list[Sample]] = {name: [] for name in stacks}
                for lap in range(rounds + 1):
                    for name, stack in stacks.items():
                        sample = stack.run(count, callers, seconds if lap else 0.2)
                        samples[name] += [sample] if lap else []  # the first lap warms up
                for row in compare("session", callers, size, samples):
                    rows.append(row)
                    show(row)
    finally:
        for stack in stacks.values():
            stack.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--stacks", default="session,raw,lattica")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--address", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    elif options.drive:
        drive(options.drive, options.address)
    else:
        rows = compare_all(options.stacks.split(","), options.rounds, options.seconds)
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
        (results / "session.json").write_text(json.dumps({"on": machine, "rows": rows}, indent=2))
        print(f"written to {results / 'session.json'}")


if __name__ == "__main__":
    main()
