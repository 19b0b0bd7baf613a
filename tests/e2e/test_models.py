"""Models at home on nodes: text over the mesh, copies from peers, archives, the sandbox, dying workers."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from node_process import DEMO, TEXT, Mesh, NodeProcess, until

from llmesh import MeshNode, ValidationFailed, sync
from llmesh.demo import GPT_MINI, SENTIMENT_ANALYZER
from llmesh.mesh.download import Progress
from llmesh.runtime import landlock, seccomp

GPT = "gpt-mini"
STORY = {"messages": [{"role": "user", "content": "讲一个关于小狐狸的故事"}], "max_tokens": 32}
GREEDY = STORY | {"temperature": 0}
FOREVER = {"times": 1 << 62, "x": [1.0, 2.0, 3.0]}
THRICE = FOREVER | {"times": 3}
BLOCK = 1 << 20
CONFINABLE = bool(landlock.abi() and seccomp.available())
SIZE = sum(path.stat().st_size for path in GPT_MINI.iterdir())


@pytest.fixture(scope="module")
def giver(mesh: Mesh) -> NodeProcess:
    """The node that has gpt-mini, and that the others know; its workers are locked in if that is possible."""
    level = "confined" if CONFINABLE else "none"
    deploy = f"{GPT_MINI},name={GPT},fee=0.1"
    return mesh.start("giver", "--require-sandbox", level, "--deploy", deploy).ready()


@pytest.fixture(scope="module")
def asker(mesh: Mesh, giver: NodeProcess) -> NodeProcess:
    """A node without models."""
    node = mesh.start("asker", "--join", giver.invite(credit=100)).ready()
    until(lambda: node.models(f"?name={GPT}"), 10, "the asker finds gpt-mini")
    return node


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as threads:
        yield threads


def text(node: NodeProcess, values: Any, model: str = GPT) -> str:
    status, answer = node.infer(model, values)
    assert status == 200, answer
    written: str = answer["output"]["text"]
    return written


# --- text ---------------------------------------------------------------------------------------


def test_text_is_the_same_through_another_node(giver: NodeProcess, asker: NodeProcess) -> None:
    sampled = STORY | {"temperature": 1.0, "seed": 7}
    for values in (GREEDY, sampled, {"text": "Once upon a time", "max_tokens": 12, "temperature": 0}):
        status, answer = asker.infer(GPT, values)
        assert status == 200, answer
        assert answer["provider"] == giver.id
        assert answer["output"]["finish_reason"] == "length"
        assert answer["usage"]["output_tokens"] == values["max_tokens"]
        assert answer["output"]["text"] == text(giver, values)
    assert len({text(asker, sampled | {"seed": seed}) for seed in (7, 8, 9)}) > 1


def test_chinese_text_is_whole_wherever_it_is_cut(asker: NodeProcess, pool: ThreadPoolExecutor) -> None:
    golden = json.loads((GPT_MINI / "golden.json").read_text())["cases"][1]
    assert golden["messages"] == STORY["messages"]
    assert text(asker, GREEDY)[:8] == golden["output_text"][:8]
    rare = {
        "messages": [{"role": "user", "content": "写一首诗"}],
        "temperature": 1.3,
        "top_k": 0,
        "top_p": 1.0,
    }
    halves = 0
    for seed in (4, 6):
        asked = [rare | {"seed": seed, "max_tokens": tokens} for tokens in range(1, 25)]
        cuts = list(pool.map(lambda values: text(asker, values), asked))
        for shorter, longer in pairwise(cuts):
            assert "\ufffd" not in shorter
            assert longer.startswith(shorter)
            halves += longer == shorter  # a token more, and still no whole character
    assert halves, "no cut went through a character"


def test_a_bad_request_for_text_names_its_field(giver: NodeProcess, asker: NodeProcess) -> None:
    for field, value in {
        "temperature": -1,
        "top_p": 0,
        "max_tokens": 0,
        "seed": "x",
        "temprature": 1,
    }.items():
        for node in (giver, asker):
            status, problem = node.infer(GPT, STORY | {field: value})
            assert (status, problem["code"]) == (422, 1004), field
            assert field in problem["detail"]


def test_a_prompt_over_the_context_is_told_both_lengths(giver: NodeProcess, asker: NodeProcess) -> None:
    def length(times: int) -> int:
        tokens: int = asker.infer(GPT, {"text": "a b c d " * times, "max_tokens": 1})[1]["usage"][
            "input_tokens"
        ]
        return tokens

    few = length(4)
    many = few + 49 * (length(8) - few)
    assert many > 512
    for node in (giver, asker):
        status, problem = node.infer(GPT, {"text": "a b c d " * 200})
        assert (status, problem["code"]) == (422, 1004)
        assert f" {many} tokens" in problem["detail"]
        assert "context of 512" in problem["detail"]


# --- copies -------------------------------------------------------------------------------------


def test_a_copy_serves_too_and_alone_once_the_first_is_gone(
    mesh: Mesh, giver: NodeProcess, asker: NodeProcess, tmp_path: Path
) -> None:
    other = shutil.copytree(GPT_MINI, tmp_path / "tale")
    (other / "README.md").write_text("The same graph, but another model.\n")
    source = mesh.start("source", "--join", giver.invite(), "--deploy", f"{other},fee=0.2").ready()
    copy = mesh.start("copy", "--join", giver.invite(), "--replicate", "tale").ready()
    until(lambda: offers_of(asker, "tale").keys() == {source.id, copy.id}, 30, "both offer it")
    found = offers_of(asker, "tale")
    assert found[copy.id]["model_id"] == found[source.id]["model_id"]
    assert [offer["fee"] for offer in found.values()] == [0.2, 0.2]
    expected = text(source, GREEDY, "tale")
    source.kill()
    for node in (asker, copy):
        status, answer = node.infer("tale", GREEDY)
        assert (status, answer["provider"]) == (200, copy.id), answer
        assert answer["output"]["text"] == expected
    assert copy.stop() == 0


def offers_of(node: NodeProcess, name: str) -> dict[str, Any]:
    """By provider, what a search at this node finds."""
    return {offer["provider"]: offer for offer in node.models(f"?name={name}")}


def stored(home: Path) -> set[str]:
    """The models that a node has whole."""
    return {folder.name for folder in (home / "store" / "models").glob("*")}


def received(home: Path) -> int:
    """Bytes of an unfinished copy, of whole blocks or not."""
    return sum(path.stat().st_size for path in (home / "store" / "staging").glob("*.partial/*"))


def held(home: Path) -> int:
    """Bytes of gpt-mini's blocks that an unfinished copy has."""
    return sum(
        len(block)
        for partial in (home / "store" / "staging").glob("*.partial")
        for original in GPT_MINI.iterdir()
        for block in equal_blocks(original, partial / original.name)
    )


def equal_blocks(original: Path, copy: Path) -> Iterator[bytes]:
    data, copied = original.read_bytes(), copy.read_bytes() if copy.exists() else b""
    for start in range(0, len(data), BLOCK):
        if data[start : start + BLOCK] == copied[start : start + BLOCK]:
            yield data[start : start + BLOCK]


def given(node: NodeProcess) -> int:
    """Bytes that a node has read from its files: what it hands out, and little else once it runs."""
    read: int = psutil.Process(node.process.pid).io_counters().read_chars
    return read


@pytest.mark.skipif(not hasattr(psutil.Process, "io_counters"), reason="no counters of what was read")
def test_a_killed_copy_goes_on_where_it_was(mesh: Mesh, giver: NodeProcess) -> None:
    wanted = ["--bootstrap", giver.address, "--replicate", f"{GPT},fee=0.3"]
    first = mesh.start("resumed", *wanted, "--transfer-rate", "4").ready()
    until(lambda: received(first.folder) > 4 * BLOCK, 20, "a third has come")
    first.kill()
    before = held(first.folder)
    assert 2 * BLOCK < before < SIZE - 2 * BLOCK
    assert stored(first.folder) == set(), "no half of a model in use"

    read = until_steady(giver)
    second = mesh.start("resumed", *wanted).ready()
    until(lambda: second.id in offers_of(second, GPT), 20, "all has come and is served")
    fetched = given(giver) - read
    assert SIZE - before <= fetched < SIZE - before + BLOCK // 8
    assert offers_of(second, GPT)[second.id]["fee"] == 0.3
    assert stored(second.folder) == {offers_of(second, GPT)[giver.id]["model_id"]}
    assert text(second, GREEDY) == text(giver, GREEDY)
    assert second.stop() == 0


def until_steady(node: NodeProcess) -> int:
    """What a node has handed out, once it has noticed that the taker is gone."""
    counts = [-1, given(node)]

    def steady() -> bool:
        counts[:] = [counts[1], given(node)]
        return counts[1] - counts[0] < BLOCK // 32

    time.sleep(0.2)
    until(steady, 10, "the giver is quiet")
    return counts[1]


# --- MeshNode -----------------------------------------------------------------------------------


def own_node(home: Path, giver: NodeProcess, **options: Any) -> MeshNode:
    listen = ["/ip4/127.0.0.1/tcp/0"]
    return MeshNode(port=0, mdns=False, listen=listen, bootstrap=[giver.address], data_dir=home, **options)


def offers_at(node: MeshNode, provider: str) -> list[dict[str, Any]]:
    """What a provider offers, as this node knows it."""
    with urllib.request.urlopen(f"{node.url}/api/v1/models", timeout=10) as answer:
        models: list[dict[str, Any]] = json.load(answer)["models"]
        return [model for model in models if model["provider"] == provider]


def packed(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def linked() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("model.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return data.getvalue()


async def test_a_model_is_the_same_however_it_is_packed(giver: NodeProcess, tmp_path: Path) -> None:
    parent, name = SENTIMENT_ANALYZER.parent, SENTIMENT_ANALYZER.name
    zipped = Path(shutil.make_archive(str(tmp_path / "one"), "zip", parent, name))
    tarred = Path(shutil.make_archive(str(tmp_path / "two"), "gztar", SENTIMENT_ANALYZER))
    whole = zipped.read_bytes()
    async with own_node(tmp_path / "home", giver) as node:
        ids = [
            await node.deploy_model(source, DEMO, 0.1)
            for source in (SENTIMENT_ANALYZER, zipped, str(tarred), whole, tarred.read_bytes())
        ]
        assert len(set(ids)) == 1
        assert stored(tmp_path / "home") == set(ids)

        def state() -> Any:
            files = (tmp_path / "home" / "store").rglob("*")
            return sorted((str(path), path.stat().st_size) for path in files), offers_at(node, node.node_id)

        before = state()
        assert [offer["model_id"] for offer in before[1]] == ids[:1]
        onnx = (SENTIMENT_ANALYZER / "model.onnx").read_bytes()
        broken = {
            "cut": whole[: len(whole) // 2],
            "garbage": b"PK\x03\x04" + bytes(range(256)),
            "nothing to run": packed(**{"README.md": b"A model."}),
            "outside": packed(**{"../model.onnx": onnx}),
            "linked": linked(),
            "half a graph": packed(**{"model.onnx": onnx[: len(onnx) // 2]}),
        }
        (tmp_path / "cut.zip").write_bytes(broken["cut"])
        sources: dict[str, bytes | Path] = {**broken, "a file": tmp_path / "cut.zip"}
        for kind, source in sources.items():
            with pytest.raises(ValidationFailed) as caught:
                await node.deploy_model(source, "broken", 0.1)
            assert caught.value.code == 1004
            assert state() == before, kind
        result = await node.request_inference(DEMO, TEXT)
        assert (result.output["label"], result.provider) == ("positive", node.node_id)


async def test_a_fetch_tells_its_progress_and_goes_on_after_a_cancel(
    giver: NodeProcess, tmp_path: Path
) -> None:
    told: list[Progress] = []
    token, some = trio.lowlevel.current_trio_token(), trio.CancelScope()

    def report(progress: Progress) -> None:
        told.append(progress)
        if progress.done > 4 * BLOCK:
            token.run_sync_soon(some.cancel)

    async with own_node(tmp_path / "home", giver, transfer_rate=6) as node:
        until(lambda: offers_at(node, giver.id), 10, "the model is found")
        with trio.fail_after(20), some:
            await node.fetch_model(GPT, report)
        cancelled_at = told[-1].done
        assert cancelled_at < SIZE
        assert stored(tmp_path / "home") == set()
        again: list[Progress] = []
        with trio.fail_after(20):
            model = await node.fetch_model(GPT, again.append)
        assert [model] == [
            offer["model_id"] for offer in giver.models(f"?name={GPT}") if offer["provider"] == giver.id
        ]
        assert stored(tmp_path / "home") == {model}
        assert offers_at(node, node.node_id) == [], "fetched is not served"
    for progress in (told, again):
        assert [each.done for each in progress] == sorted(each.done for each in progress)
        assert {(each.model_id, each.total) for each in progress} == {(model, SIZE)}
    assert cancelled_at <= again[0].done < SIZE
    assert again[-1].done == SIZE
    assert any(giver.id in each.sources and each.rate > 0 for each in again)


# --- workers ------------------------------------------------------------------------------------


@pytest.mark.skipif(not CONFINABLE, reason="this machine has no Landlock or no seccomp filters")
def test_a_confined_worker_answers_and_has_no_network(giver: NodeProcess) -> None:
    assert text(giver, GREEDY)
    workers = giver.workers()
    assert workers
    free = kernel_facts(psutil.Process(giver.process.pid))
    for worker in workers:
        facts = kernel_facts(worker)
        assert (facts["Seccomp"], facts["NoNewPrivs"]) == ("2", "1")
        assert int(facts["Seccomp_filters"]) == int(free["Seccomp_filters"]) + 1
        handles = [handle.readlink() for handle in Path(f"/proc/{worker.pid}/fd").iterdir()]
        assert handles
        assert not [handle for handle in handles if str(handle).startswith("socket:")]


def kernel_facts(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def busy(node: NodeProcess) -> list[psutil.Process]:
    """Its workers that are computing, by what they do in a tenth of a second."""
    before = {worker: computed(worker) for worker in node.workers()}
    time.sleep(0.1)
    return [each for each in node.workers() if computed(each) - before.get(each, 1e9) > 0.03]


def computed(process: psutil.Process) -> float:
    """Seconds of computing; none for one that is gone, such as the probe of a node that has started."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


def test_a_request_whose_workers_are_killed_is_2004_and_the_next_is_answered(
    mesh: Mesh, giver: NodeProcess, asker: NodeProcess, endless_model: Path, pool: ThreadPoolExecutor
) -> None:
    deploy = ["--bootstrap", giver.address, "--deploy", f"{endless_model},name=endless"]
    nodes = [mesh.start(name, *deploy) for name in ("mortal", "spare")]
    for node in nodes:
        node.ready()
    until(lambda: len(asker.models("?name=endless")) == 2, 10, "both are found")
    for node in nodes:
        until(lambda node=node: node.get("/api/v1/status")["sandbox"], 20, "its probe is over")
    running: Future[Any] = pool.submit(asker.infer, "endless", FOREVER, timeout=30)

    def working() -> list[tuple[NodeProcess, psutil.Process]]:
        return [(node, worker) for node in nodes for worker in busy(node)]

    first, worker = until(working, 10, "one provider works on it")[0]
    worker.kill()
    second, other = until(working, 10, "another takes it on")[0]
    assert second is not first
    assert not running.done()
    other.kill()
    status, problem = running.result(10)
    assert (status, problem["code"]) == (502, 2004), problem
    for node in nodes:
        began = time.monotonic()
        status, answer = node.infer("endless", THRICE)
        assert status == 200, answer
        assert answer["output"]["y"] == [8.0, 16.0, 24.0]
        assert time.monotonic() - began < 5
    assert list(pool.map(NodeProcess.stop, nodes)) == [0, 0]


# --- over restarts ------------------------------------------------------------------------------


def test_what_was_deployed_is_served_again_after_a_kill(mesh: Mesh) -> None:
    first = mesh.start("lasting").ready()
    metadata = {"name": "mine", "version": "2.1", "fee": 0.25, "description": "Tells feelings."}
    with sync.MeshClient(first.url) as client:
        model = client.deploy_model(SENTIMENT_ANALYZER, metadata)
    before = first.models("?name=mine")
    first.kill()
    second = mesh.start("lasting").ready()
    status, answer = second.infer("mine:2.1")
    assert (status, answer["model_id"]) == (200, model)
    assert second.models("?name=mine") == before
    with sync.MeshClient(second.url) as client:
        client.remove_model(model)
    second.kill()
    assert mesh.start("lasting").ready().models("?name=mine") == []
