"""What the gateway itself costs: each of its faces beside a bare ASGI app on the same Hypercorn.

The router is a fake that answers at once, so what is left is HTTP, Quart, the gate and JSON.  Every
face has a ceiling of its own kind (one JSON answer, server-sent events, a WebSocket), which reads as
much and sends as much.  Server and clients are two processes; faces and ceilings take turns, so read
the ratios.  Aims: at one client within 1 ms of the ceiling; at 256 every request answered or refused
with 503 and Retry-After, at 90 % or more of the rate at 64.

Usage: python benchmarks/gateway.py [--rounds 3] [--seconds 1] [--clients 1,8,64,256] [--faces REST,SSE]
       [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import trio
from load import Question, chunked, frames, load, post, text_frame, upgrade, whole

from llmesh.core.amount import Amount
from llmesh.core.exchange import Accepted
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Chunk, InferenceRequest, Result, Usage
from llmesh.gateway.app import App, create_app
from llmesh.gateway.server import bind, serve
from llmesh.mesh.events import Events

MODEL = "sentiment-analyzer"
TEXT = "今天的服务真的太棒了，下次还会再来！"
OUTPUT = {"label": "positive", "score": 0.9876, "text": "Once upon a time", "finish_reason": "stop"}
CLIENTS = (1, 8, 64, 256)
ANSWER = json.dumps({"request_id": "0" * 32, "model": MODEL, "output": OUTPUT, "fee": 0.1, "more": "x" * 300})
CEILINGS = {"REST": "JSON", "OpenAI": "JSON", "KServe": "JSON", "SSE": "events", "WebSocket": "socket"}


# --- the server -------------------------------------------------------------------------------


class Fake:
    """Router, catalogue and node that know one answer."""

    def lookup(self, ref: object) -> Sequence[Any]:
        return ()

    ready = True

    def __init__(self) -> None:
        self.events = Events()

    async def infer(self, request: InferenceRequest, wishes: object = None, purse: object = None) -> Result:
        return Result(
            request.id, MODEL, ModelId("ab" * 32), OUTPUT, Amount(100_000), PeerId("12D3KooW" + "A" * 44),
            1.5, Usage(12, 4, 1.0),
        )  # fmt: skip

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: object = None, purse: object = None
    ) -> AsyncIterator[AsyncIterator[Accepted | Chunk | Result]]:
        async def events() -> AsyncIterator[Accepted | Chunk | Result]:
            yield Accepted()
            for index, text in enumerate(("Once", " upon", " a time")):
                yield Chunk(index, text)
            yield await self.infer(request)

        yield events()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The ceilings: an answer in JSON, events, or a WebSocket, by the path."""
    if scope["type"] == "websocket":
        await _bare_socket(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    events = scope["path"] == "/events"
    head = [(b"content-type", b"text/event-stream")] if events else [
        (b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode()),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for _ in range(4 if events else 0):
        event = b'event: chunk\ndata: {"id":"0","index":0,"text":"Once"}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
    last = f"event: completed\ndata: {ANSWER}\n\n" if events else ANSWER
    await send({"type": "http.response.body", "body": last.encode(), "more_body": events})
    if events:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _bare_socket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        for _ in range(4):
            await send(
                {"type": "websocket.send", "text": '{"type":"chunk","id":"0","index":0,"text":"Once"}'}
            )
        await send({"type": "websocket.send", "text": f'{{"type":"completed","result":{ANSWER}}}'})


async def serving() -> None:
    fake: Any = Fake()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = [
            await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            for app in (create_app(fake, fake, fake), cast("App", bare))
        ]
        print(json.dumps([int(url.rsplit(":", 1)[1]) for url in urls]), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)  # until the parent is gone
        stop.set()


# --- the questions ----------------------------------------------------------------------------


def questions(gateway: int, ceiling: int) -> dict[str, Question]:
    """Each face and each ceiling, by name."""

    def ask(path: str, body: Any, **headers: str) -> bytes:
        return post(path, json.dumps(body).encode(), gateway, **headers)

    native = {"model": MODEL, "input": {"text": TEXT}, "timeout": 30}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}]}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    stream = text_frame(json.dumps({"type": "inference_stream", **native}).encode())
    body = json.dumps(native).encode()
    return {
        "JSON": Question(ceiling, post("/", body, ceiling), whole),
        "REST": Question(gateway, ask("/api/v1/inference", native), whole),
        "OpenAI": Question(gateway, ask("/v1/chat/completions", chat), whole),
        "KServe": Question(gateway, ask(f"/v2/models/{MODEL}/infer", {"inputs": [tensor]}), whole),
        "events": Question(ceiling, post("/events", body, ceiling), chunked),
        "SSE": Question(gateway, ask("/api/v1/inference", native, Accept="text/event-stream"), chunked),
        "socket": Question(ceiling, stream, frames, upgrade("/ws", ceiling)),
        "WebSocket": Question(gateway, stream, frames, upgrade("/ws", gateway)),
    }


@dataclass(frozen=True)
class Figures:
    """One turn of one way with so many clients."""

    way: str
    clients: int
    rate: float
    p50: float
    p99: float
    cpu: float
    """Milliseconds that the server's process was busy for an answer: what a busy machine leaves alone."""
    refused: int
    failed: int


async def turn(way: str, question: Question, clients: int, seconds: float, server: psutil.Process) -> Figures:
    before = sum(server.cpu_times()[:2])
    tally = await load(question, clients, seconds)
    busy = (sum(server.cpu_times()[:2]) - before) * 1e3 / max(1, len(tally.times))
    p50, p99 = tally.quantile(0.5), tally.quantile(0.99)
    return Figures(way, clients, tally.rate, p50, p99, busy, tally.refused, tally.failed)


async def measure(
    asked: dict[str, Question], options: argparse.Namespace, server: psutil.Process
) -> list[Figures]:
    for question in asked.values():
        await load(question, 1, 0.3)  # warm
    return [
        await turn(way, question, clients, options.seconds, server)
        for _ in range(options.rounds)
        for clients in options.clients
        for way, question in asked.items()
    ]


def report(found: Sequence[Figures], ways: Sequence[str], clients: Sequence[int]) -> None:
    def median(way: str, count: int, field: str) -> float:
        return statistics.median(
            getattr(each, field) for each in found if (each.way, each.clients) == (way, count)
        )

    heads = ("clients", "answers/s", "p50 ms", "p99 ms", "CPU ms", "of ceiling")
    print(f"{'':>10}" + "".join(f"{head:>11}" for head in heads))
    for way in ways:
        for count in clients:
            rate, p50, p99, cpu = (median(way, count, field) for field in ("rate", "p50", "p99", "cpu"))
            of = f"{rate / median(CEILINGS[way], count, 'rate'):.2f}" if way in CEILINGS else ""
            print(f"{way:>10}{count:>11}{rate:>11.0f}{p50:>11.3f}{p99:>11.3f}{cpu:>11.3f}{of:>11}")
    for way in (way for way in ways if way in CEILINGS):
        if 1 in clients:
            extra, busy = (median(way, 1, of) - median(CEILINGS[way], 1, of) for of in ("p50", "cpu"))
            print(f"{way}: {extra:+.3f} ms to its ceiling at one client (aim: +1), {busy:+.3f} ms of CPU")
        if {64, 256} <= set(clients):
            kept = median(way, 256, "rate") / median(way, 64, "rate")
            lost = sum(each.failed for each in found if each.way == way)
            print(f"{way}: {kept:.2f} of the rate of 64 clients at 256 (aim: 0.90), {lost} lost")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=_numbers, default=(1, 8, 64, 256))
    parser.add_argument("--faces", type=lambda text: text.split(","), default=list(CEILINGS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serving)
        return
    server = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        every = questions(*json.loads(child.stdout.readline()))
        wanted = {*options.faces, *(CEILINGS[face] for face in options.faces)}
        asked = {way: question for way, question in every.items() if way in wanted}
        found = asyncio.run(measure(asked, options, psutil.Process(child.pid)))
        assert child.stdin is not None
        child.stdin.close()
    print(
        platform.processor() or platform.machine(), f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
    )
    report(found, list(asked), options.clients)
    if options.json is not None:
        options.json.write_text(json.dumps([vars(each) for each in found], indent=1))


if __name__ == "__main__":
    main()
