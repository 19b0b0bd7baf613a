"""The blocking client: the same methods, from scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading

import pytest
import trio
from llmesh_sdk import MeshClient as AsyncClient
from llmesh_sdk import StreamChunk

from llmesh.core.ids import PeerId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import NodeUnreachable, ValidationFailed
from llmesh.mesh.events import PeerChange, PeerUpdated
from llmesh.sync import MeshClient


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name.removeprefix("a") if name == "aclose" else name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def test_it_has_the_methods_of_the_other_with_their_arguments_and_results() -> None:
    ours, theirs = public(MeshClient), public(AsyncClient)
    assert ours.keys() == theirs.keys()
    for name, signature in theirs.items():
        assert ours[name].parameters == signature.parameters, name
        assert ours[name].return_annotation == signature.return_annotation, name


def test_calls_block_until_they_are_answered(mesh) -> None:
    with MeshClient(mesh.url) as client:
        assert client.url == mesh.url
        assert client.status().peers == 42
        assert client.search_models("sentiment", max_fee=0.1, limit=2)[0].name == "sentiment-analyzer"
        assert client.inference("m", "hello").output == {"text": "hello"}
        with pytest.raises(ValidationFailed):
            client.inference("!", "hello")
    with pytest.raises(NodeUnreachable):
        MeshClient("http://127.0.0.1:9").status()


def test_streams_and_events_are_iterators(mesh) -> None:
    with MeshClient(mesh.url) as client:
        with client.stream("gpt-mini", "once upon") as stream:
            assert list(stream) == [StreamChunk(0, "once"), StreamChunk(1, " upon")]
            assert stream.result.output == {"text": "once upon"}
        done = threading.Event()

        def tell() -> None:
            while not done.wait(0.02):
                mesh.tell(PeerUpdated(PeerId("p"), PeerChange.UP))

        teller = threading.Thread(target=tell)
        teller.start()
        with client.subscribe(["peer_update"]) as events:
            assert next(events).data == {"peer_id": "p", "change": "up"}
            assert next(events).name == "peer_update"
        done.set()
        teller.join()


def test_leaving_a_stream_cancels_the_work(mesh) -> None:
    started = threading.Event()

    async def wait(request: InferenceRequest) -> Result:
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    mesh.answer = wait
    with MeshClient(mesh.url) as client:
        with client.stream("gpt-mini", "once") as stream:
            assert next(stream).text == "once"
            assert started.wait(10)
        assert mesh.cancelled.wait(10)


def test_it_works_from_many_threads_and_inside_a_notebooks_loop(mesh) -> None:
    client, answers = MeshClient(mesh.url), list[object]()
    threads = [
        threading.Thread(target=lambda n=n: answers.append(client.inference("m", str(n)).output["text"]))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [str(n) for n in range(8)]

    async def cell() -> str:
        return str(client.inference("m", "from a cell").output["text"])

    assert asyncio.run(cell()) == "from a cell"
    client.close()


def test_it_is_refused_where_it_would_stop_a_node(mesh) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="await"):
            MeshClient(mesh.url).status()

    trio.run(main)


def test_a_script_ends_though_it_closes_nothing(mesh) -> None:
    program = (
        f"from llmesh.sync import MeshClient\nprint(MeshClient({mesh.url!r}).inference('m', 'hi').output)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("{'text': 'hi'}", "")
