"""Three nodes as three processes, started only with the address of one of them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from node_process import DEMO, TEXT, Mesh, NodeProcess, until

from llmesh import MeshClient
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelNotFound, ValidationFailed

FOREVER = {"times": 1 << 62, "x": [1.0, 2.0, 3.0]}


@pytest.fixture(scope="module")
def a(mesh: Mesh) -> NodeProcess:
    """The node that the others know."""
    return mesh.start("a").ready()


@pytest.fixture(scope="module")
def b(mesh: Mesh, a: NodeProcess) -> NodeProcess:
    return mesh.start("b", "--join", a.invite(credit=10)).ready()


@pytest.fixture
def c(mesh: Mesh, a: NodeProcess, b: NodeProcess) -> Iterator[NodeProcess]:
    """A node with the demo model, known to A as its only provider."""
    node = mesh.start("c", "--join", a.invite(), "--deploy", f"{SENTIMENT_ANALYZER},name={DEMO},fee=0.1")
    node.ready()
    until(lambda: a.infer()[0] == 200, 5, "C's model runs through A")
    yield node
    if node.process.poll() is None:
        node.signal(signal.SIGCONT)
        assert node.stop() == 0


def offered(node: NodeProcess, query: str = "") -> set[str]:
    """Who offers what a search at this node finds."""
    return {model["provider"] for model in node.models(query)}


def test_a_model_is_found_and_run_from_every_node(a: NodeProcess, b: NodeProcess, c: NodeProcess) -> None:
    for node in (a, b):
        until(lambda node=node: c.id in offered(node), 5, "found")
        for query in ("?name=senti", f"?name={DEMO}", "?max_fee=0.1", "?name=SENTI&max_fee=1&limit=1"):
            assert offered(node, query) == {c.id}, query
        for query in ("?max_fee=0.09", "?name=other"):
            assert offered(node, query) == set(), query
        status, answer = node.infer(values={"text": TEXT}, timeout=30, max_fee=0.1)
        assert status == 200, answer
        assert answer["output"]["label"] == "positive"
        assert (answer["provider"], answer["fee"], answer["model"]) == (c.id, 0.1, DEMO)
        assert answer["model_id"] == c.models()[0]["model_id"]
    assert node.infer(max_fee=0.05)[0] == 404


def test_what_nobody_has_is_1001(a: NodeProcess, b: NodeProcess) -> None:
    status, problem = a.infer("no-such-model")
    assert (status, problem["code"]) == (404, 1001)
    assert problem["request_id"]
    assert problem["next_step"]


def test_a_bad_input_is_1004_from_the_provider_too(a: NodeProcess, c: NodeProcess) -> None:
    for values in ({}, {"txt": "x"}, {"text": 7}, {"text": ""}):
        status, problem = a.infer(values=values)
        assert (status, problem["code"]) == (422, 1004), values
    assert a.infer()[0] == 200


def test_the_sdk_as_printed(a: NodeProcess, c: NodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMESH_URL", a.url)
    client = MeshClient()

    async def program() -> None:
        models = await client.search_models(name="sentiment", max_fee=0.1)
        assert [model.name for model in models] == [DEMO]
        result = await client.inference(model=DEMO, input_data={"text": "很棒的产品！"})
        assert (result.output["label"], result.provider) == ("positive", c.id)
        with pytest.raises(ModelNotFound):
            await client.inference(model="sentiment-analyzer-v2", input_data={"text": "x"})
        with pytest.raises(ValidationFailed):
            await client.inference(model=DEMO, input_data={"txt": "x"})

    asyncio.run(program())
    asyncio.run(program())
    trio.run(program)


def test_a_killed_provider_is_2002_at_once_forgotten_soon_and_used_again(
    mesh: Mesh, a: NodeProcess, c: NodeProcess
) -> None:
    c.kill()
    began = time.monotonic()
    status, problem = a.infer(timeout=30)
    assert (status, problem["code"]) == (503, 2002)
    assert time.monotonic() - began < 4
    until(lambda: c.id not in offered(a), 15, "C's offers are dropped")
    again = mesh.start("c", "--bootstrap", a.address, "--demo").ready()
    until(lambda: a.infer()[0] == 200, 10, "C is used again")
    assert a.infer()[1]["provider"] == again.id == c.id
    assert again.stop() == 0


def test_a_frozen_provider_is_2002_within_the_window_and_forgotten_soon(
    a: NodeProcess, c: NodeProcess
) -> None:
    c.signal(signal.SIGSTOP)
    began = time.monotonic()
    status, problem = a.infer(timeout=30)
    assert (status, problem["code"]) == (503, 2002)
    assert time.monotonic() - began < 4
    until(lambda: c.id not in offered(a), 17 - (time.monotonic() - began), "C counts as dead")
    c.signal(signal.SIGCONT)
    until(lambda: a.infer()[0] == 200, 15, "C is used again")


def test_a_provider_killed_under_load_costs_no_request(
    mesh: Mesh, a: NodeProcess, b: NodeProcess, c: NodeProcess
) -> None:
    d = mesh.start("d", "--join", a.invite(), "--deploy", f"{SENTIMENT_ANALYZER},name={DEMO},fee=0.1")
    d.ready()
    until(lambda: {c.id, d.id} <= offered(a), 5, "both are found")
    answers = []
    with ThreadPoolExecutor(8) as pool:
        for n, answer in enumerate(pool.map(lambda _: a.infer(timeout=20), range(200))):
            answers.append(answer)
            if n == 60:
                c.kill()
    assert [problem for status, problem in answers if status != 200] == []
    assert {body["provider"] for _, body in answers} == {c.id, d.id}
    assert d.stop() == 0


def test_a_timeout_is_1003_and_the_provider_stops_working(
    mesh: Mesh, a: NodeProcess, endless_model: Path
) -> None:
    slow = mesh.start("slow", "--bootstrap", a.address, "--deploy", f"{endless_model},name=slow").ready()
    until(lambda: a.models("?name=slow"), 5, "found")
    worker = slow.workers()[0]
    for timeout in (0.05, 1.0):
        began = time.monotonic()
        status, problem = a.infer("slow", FOREVER, timeout=timeout)
        assert (status, problem["code"]) == (504, 1003)
        assert time.monotonic() - began < timeout + 1
    assert sum(worker.cpu_times()[:2]) > 0.3, "it did work"

    def idle() -> bool:
        before = sum(worker.cpu_times()[:2])
        time.sleep(0.3)
        return sum(worker.cpu_times()[:2]) - before < 0.05

    until(idle, 5, "the worker is idle")
    status, answer = a.infer("slow", {"times": 3, "x": [1.0, 2.0, 3.0]})
    assert (status, answer["output"]["y"]) == (200, [8.0, 16.0, 24.0])
    assert slow.stop() == 0


def test_one_name_for_two_models_means_one_of_them(mesh: Mesh, a: NodeProcess, tmp_path: Path) -> None:
    other = shutil.copytree(SENTIMENT_ANALYZER, tmp_path / "other")
    (other / "README.md").write_text("Another model altogether.\n")
    nodes = [
        mesh.start(
            name, "--join", a.invite(credit=20), "--stake", stake, "--deploy", f"{path},name=twin"
        ).ready()
        for name, path, stake in (("one", SENTIMENT_ANALYZER, "10"), ("two", other, "20"))
    ]
    until(lambda: len(a.models("?name=twin")) == 2, 5, "both are found")
    assert sorted(model["stake"] for model in a.models("?name=twin")) == [10, 20]
    ids = {model["provider"]: model["model_id"] for model in a.models("?name=twin")}
    assert len(set(ids.values())) == 2
    answers = [a.infer("twin") for _ in range(20)]
    assert {status for status, _ in answers} == {200}
    bonded = nodes[1]
    assert {(body["provider"], body["model_id"]) for _, body in answers} == {(bonded.id, ids[bonded.id])}
    poorer = nodes[0]
    status, answer = a.infer(f"twin@{ids[poorer.id]}")
    assert (status, answer["provider"], answer["model_id"]) == (200, poorer.id, ids[poorer.id])
    assert [node.stop() for node in nodes] == [0, 0]


def test_below_the_least_stake_nothing_is_announced(mesh: Mesh, a: NodeProcess) -> None:
    poor = mesh.start("poor", "--min-stake", "5", "--stake", "4", "--demo")
    assert poor.process.wait(20) == 2
    assert poor.said().count("\n") == 1
    assert "5 MESH" in poor.said()


def test_a_withdrawn_offer_is_gone_at_once(mesh: Mesh, a: NodeProcess, b: NodeProcess) -> None:
    short = mesh.start(
        "short", "--bootstrap", a.address, "--deploy", f"{SENTIMENT_ANALYZER},name=short"
    ).ready()
    for node in (a, b):
        until(lambda node=node: offered(node, "?name=short") == {short.id}, 5, "found")
    assert short.stop() == 0
    for node in (a, b):
        until(lambda node=node: not node.models("?name=short"), 2, "gone")
    assert a.infer("short")[1]["code"] == 1001


def test_peers_tell_each_node_that_it_can_be_reached(a: NodeProcess, b: NodeProcess) -> None:
    for node in (a, b):
        until(lambda node=node: node.get("/api/v1/status")["reachable"], 20, "reachable")
        assert f"Other nodes can reach this one at {node.address}" in node.said()


def test_a_node_of_another_swarm_is_shown_as_foreign_and_its_stake_does_not_count(
    mesh: Mesh, a: NodeProcess
) -> None:
    given = f"{SENTIMENT_ANALYZER},name=gift"
    lone = mesh.start("lone", "--bootstrap", a.address, "--stake", "1000", "--deploy", given).ready()
    until(lambda: a.models("?name=gift"), 5, "found")
    assert [model["stake"] for model in a.models("?name=gift")] == [0]
    peers = {peer["peer_id"]: peer for peer in a.get("/api/v1/peers")["peers"]}
    assert (peers[lone.id]["foreign"], peers[lone.id]["stake"]) == (True, 0)
    assert a.infer("gift")[1]["provider"] == lone.id
    assert lone.stop() == 0
