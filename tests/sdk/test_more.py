"""Batches, plans, wishes, models brought and taken, and calls that are sent again, from both loops."""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from llmesh_sdk import InferencePlan, InferenceResult, MeshClient

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import Conflict, MeshError, ModelNotFound, NetworkError, NodeBusy, ValidationFailed

from .conftest import MODEL_ID, PROVIDER, echo


@pytest.fixture(params=["asyncio", "trio"])
def call(mesh, request: pytest.FixtureRequest) -> Callable[[Callable[[MeshClient], Awaitable[Any]]], Any]:
    """Run one call of a client in a loop of its own."""

    def called(use: Callable[[MeshClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with MeshClient(mesh.url) as client:
                return await use(client)

        return asyncio.run(main()) if request.param == "asyncio" else trio.run(main)

    return called


def test_a_batch_is_answered_in_order_and_failures_lie_in_their_places(mesh, call) -> None:
    async def answer(request: InferenceRequest) -> Result:
        if request.model.name == "model2":
            raise NodeBusy("No place is free.", retry_after=3)
        return await echo(request)

    mesh.answer = answer
    rows: list[dict[str, Any]] = [{"model": f"model{n}", "input": {"n": n}} for n in (1, 2, 3)]
    first, second, third = call(
        lambda client: client.batch_inference([*rows[:2], {**rows[2], "max_fee": 0.1}])
    )
    assert isinstance(first, InferenceResult)
    assert (first.output, third.output) == ({"n": 1}, {"n": 3})
    assert isinstance(second, NodeBusy)
    assert (second.retry_after, second.request_id is not None) == (3, True)
    assert [r.max_fee for r in mesh.requests if r.model.name == "model3"] == [Amount(100_000)]


def test_a_large_batch_goes_in_parts(mesh, call) -> None:
    rows = [{"model": "m", "input": {"n": n}, "timeout": 5} for n in range(600)]
    results = call(lambda client: client.batch_inference(rows))
    assert [result.output["n"] for result in results] == list(range(600))
    assert call(lambda client: client.batch_inference([])) == []


@pytest.mark.parametrize(
    "rows", [["x"], [{"model": "m", "input": object()}], [{"dry_run": True}], [{"timeout": 0}]]
)
def test_bad_rows_send_nothing(mesh, rows: list[Any]) -> None:
    with pytest.raises(ValidationFailed):
        trio.run(MeshClient(mesh.url).batch_inference, rows)
    assert not mesh.requests


def test_wishes_reach_the_router(mesh, call) -> None:
    wishes = Wishes(
        Sort.LATENCY, Amount(5), frozenset({PROVIDER}), frozenset({PeerId("12D3KooW" + "C" * 44)})
    )
    call(lambda client: client.inference("m", "x", wishes=wishes))
    assert mesh.wishes == [wishes]


def test_a_plan_runs_nothing(mesh, call) -> None:
    plan = call(lambda client: client.plan("m", "x"))
    assert isinstance(plan, InferencePlan)
    assert (plan.fee, plan.providers) == (Amount.parse("0.1"), ((PROVIDER, Amount.parse("0.1")),))
    assert not mesh.requests


def test_the_contract_deploys(mesh, call) -> None:
    seen: list[tuple[int, int]] = []
    data = bytes(range(256)) * 4096
    metadata = {"name": "my-model", "version": "1.0.0", "description": "自定义模型"}
    model = call(lambda client: client.deploy_model(data, metadata, progress=lambda *n: seen.append(n)))
    assert model == MODEL_ID
    assert mesh.deployed == [(data, "my-model", Amount(0), "1.0.0", "自定义模型")]
    assert seen[-1] == (len(data), len(data))
    assert seen == sorted(seen)
    call(lambda client: client.remove_model(model))
    with pytest.raises(ModelNotFound):
        call(lambda client: client.remove_model(model))


def test_files_and_folders_are_deployed(mesh, tmp_path: Path) -> None:
    client = MeshClient(mesh.url)
    (tmp_path / "model.onnx").write_bytes(b"the graph")
    metadata = {"name": "m", "fee": 0.5}
    trio.run(client.deploy_model, tmp_path / "model.onnx", metadata)
    assert mesh.deployed.pop() == (b"the graph", "m", Amount(500_000), "1.0.0", "")
    trio.run(client.deploy_model, str(tmp_path), metadata)
    packed, *_ = mesh.deployed.pop()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile("./model.onnx")
        assert member is not None
        assert member.read() == b"the graph"


@pytest.mark.parametrize(
    ("model", "metadata", "error"),
    [
        (b"x", {"name": "taken"}, Conflict),
        (b"x", {}, ValidationFailed),
        (b"x", {"name": "m", "fee": -1}, ValidationFailed),
        (b"x", {"name": object()}, ValidationFailed),
        ("/no/such/model.onnx", {"name": "m"}, ValidationFailed),
        (7, {"name": "m"}, ValidationFailed),
    ],
)
def test_bad_deployments(mesh, model: Any, metadata: dict[str, Any], error: type[MeshError]) -> None:
    with pytest.raises(error):
        trio.run(MeshClient(mesh.url).deploy_model, model, metadata)
    assert mesh.deployed == []


def test_a_bad_id_is_refused_at_once() -> None:
    with pytest.raises(ValidationFailed):
        trio.run(MeshClient().remove_model, ModelId("../status"))


ANSWER = b'{"models":[]}'


@pytest.fixture
def breaking() -> Iterator[tuple[str, list[bytes]]]:
    """A server that hangs up on its first two requests; the heads of all that it got."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link, suppress(OSError):
                    heads.append(link.recv(65536))
                    if len(heads) > 2:
                        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
                            ANSWER
                        )
                        link.sendall(head + ANSWER)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def test_a_broken_call_is_sent_again_under_the_same_key(breaking) -> None:
    url, heads = breaking
    client = MeshClient(url, key="llmesh_secret")
    with pytest.raises(NetworkError, match="does not answer like"):  # it has no output
        trio.run(client.inference, "m", "x")
    keys = {
        line for head in heads for line in head.split(b"\r\n") if line.lower().startswith(b"idempotency-key")
    }
    assert (len(heads), len(keys)) == (3, 1)
    assert all(b"llmesh_secret" in head for head in heads)
    assert "secret" not in repr(client)


def test_what_must_not_be_sent_twice_is_not(breaking) -> None:
    url, heads = breaking
    with pytest.raises(NetworkError):
        trio.run(MeshClient(url).remove_model, MODEL_ID)
    assert len(heads) == 1
