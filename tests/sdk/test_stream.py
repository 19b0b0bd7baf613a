"""Streams and subscriptions of MeshClient, from asyncio and from trio."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
from llmesh_sdk import InferenceResult, MeshClient, MeshEvent, StreamChunk
from llmesh_sdk import stream as stream_module

from llmesh.core.ids import PeerId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import ModelNotFound, NetworkError, NodeBusy, NodeUnreachable, ValidationFailed
from llmesh.mesh.events import EventName, PeerChange, PeerUpdated

RUN: dict[str, Callable[[Callable[[], Awaitable[Any]]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "trio": trio.run,
}


@pytest.fixture(params=RUN)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    return RUN[request.param]


async def forever(request: InferenceRequest) -> Result:
    await trio.sleep_forever()
    raise AssertionError


def test_text_comes_in_pieces_and_the_whole_at_the_end(mesh, run) -> None:
    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            stream = client.stream("gpt-mini", "once upon a time", timeout=7, max_fee="0.25")
            with pytest.raises(RuntimeError, match="not been read"):
                stream.result  # noqa: B018
            pieces = [piece async for piece in stream]
            assert pieces[:2] == [StreamChunk(0, "once"), StreamChunk(1, " upon")]
            assert "".join(piece.text for piece in pieces) == "once upon a time"
            assert isinstance(stream.result, InferenceResult)
            assert stream.result.output == {"text": "once upon a time"}
            assert [piece async for piece in stream] == []

    run(main)
    [request] = mesh.requests
    assert (request.timeout, str(request.max_fee)) == (7, "0.25")


@pytest.mark.parametrize("way", ["async with", "aclose", "cancel"])
def test_leaving_cancels_the_work(mesh, run, way: str) -> None:
    mesh.answer = forever

    async def leave(client: MeshClient) -> None:
        stream = client.stream("gpt-mini", "once upon a time")
        if way == "async with":
            async with stream:
                await anext(stream)
                return
        with anyio.move_on_after(0.3 if way == "cancel" else 10):
            async for _ in stream:
                if way == "aclose":
                    break
        await stream.aclose()

    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            await leave(client)
            for _ in range(500):
                if mesh.cancelled.is_set() or not mesh.requests:
                    break
                await anyio.sleep(0.01)

    run(main)
    assert mesh.cancelled.is_set() or not mesh.requests, "it ended before it had come to the model"


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_leaving_the_loop_cancels_the_work_too(mesh, run) -> None:
    started = threading.Event()

    async def wait(request: InferenceRequest) -> Result:
        started.set()
        return await forever(request)

    mesh.answer = wait

    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            async for piece in client.stream("gpt-mini", "once upon"):
                if piece.index == 1:
                    await anyio.to_thread.run_sync(started.wait, 10)
                    break
            gc.collect()
            await anyio.to_thread.run_sync(mesh.cancelled.wait, 10)

    run(main)
    assert mesh.cancelled.is_set()


def test_errors_are_those_of_an_inference(mesh, run) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise NodeBusy("No place is free.", retry_after=3, next_step="Go home.")

    mesh.answer = fail

    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            with pytest.raises(NodeBusy) as busy:
                [piece async for piece in client.stream("gpt-mini", "hi")]
            assert (busy.value.retry_after, busy.value.request_id) == (3, mesh.requests[0].id)
            assert busy.value.next_step == "Go home."
            with pytest.raises(ValidationFailed, match="model name"):
                await anext(client.stream("!", "hi"))
            with pytest.raises(ValidationFailed):
                client.stream("m", {"x": object()})
            with pytest.raises(ValidationFailed):
                client.subscribe("inference")
            with pytest.raises(ValidationFailed, match="weather"):
                await anext(client.subscribe(["weather"]))

    run(main)


def test_where_no_node_is(run) -> None:
    async def main() -> None:
        async with MeshClient("http://127.0.0.1:9") as client:
            for items in (client.stream("m", "hi"), client.subscribe(["inference"])):
                with pytest.raises(NodeUnreachable, match=r"llmesh\.node"):
                    await anext(items)

    run(main)


def test_something_else_that_answers_is_no_node(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()

        async def main() -> None:
            async with MeshClient(f"http://127.0.0.1:{server.getsockname()[1]}") as client:
                with pytest.raises(NetworkError, match="WebSocket"):
                    await anext(client.stream("m", "hi"))

        run(main)


def test_events_come_and_go_on_after_a_break(mesh, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "SHORTEST", 0.01)
    heard: list[MeshEvent] = []

    def tell_until(count: int) -> None:
        while len(heard) < count:
            mesh.tell(PeerUpdated(PeerId("p"), PeerChange.UP))
            time.sleep(0.02)

    async def main() -> None:
        async with MeshClient(mesh.url) as client, client.subscribe([EventName.PEER_UPDATE]) as events:
            threading.Thread(target=tell_until, args=(2,), daemon=True).start()
            heard.append(await anext(events))
            await break_connections(client)
            heard.append(await anext(events))

    run(main)
    assert [event.name for event in heard] == ["peer_update", "peer_update"]
    assert heard[0] == MeshEvent("peer_update", {"peer_id": "p", "change": "up"}, 0)


async def break_connections(client: MeshClient) -> None:
    """Cut what the client has open, as a lost network would be noticed."""
    http = await client._transport._http()
    for connection in list(http._transport._pool.connections):
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def test_a_model_that_nobody_offers(mesh, run) -> None:
    async def none(request: InferenceRequest) -> Result:
        raise ModelNotFound("No valid offer is known.")

    mesh.answer = none

    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            with pytest.raises(ModelNotFound):
                [piece async for piece in client.stream("m", {"n": 1})]

    run(main)
