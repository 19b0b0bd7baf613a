"""Hostile bundles through the whole way of a deploy: a worker may die, this process never does."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import trio
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.core.encoding import Tensor
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import MeshError, ModelFailed, ValidationFailed
from llmesh.runtime import scanner
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.deposit import deposit
from llmesh.runtime.orders import GraphFacts
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.scanner import open_scanner, scan_bundle_graph
from llmesh.runtime.store import open_store

from .conftest import Save, ask, doubler, endless, external, giant, model_of, value
from .test_workers import workers

GOOD = {"text": "很棒的产品！"}


@pytest.fixture
async def deploy(runtime: Runtime, tmp_path: Path) -> Callable[[Path | bytes], Any]:
    """As a node does it: into the store, from there to a worker."""
    store = await open_store(tmp_path / "store")

    async def run(source: Path | bytes) -> Any:
        with trio.fail_after(30):
            bundle = await deposit(store, source)
            await runtime.load(bundle)
            return bundle.id

    return run


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "/proc/self/mem"])
async def test_paths_out_of_the_bundle(deploy: Any, save: Save, tmp_path: Path, location: str) -> None:
    folder = save(external(location), "m/model.onnx") / "m"
    (tmp_path / "secret").write_bytes(bytes(12))
    for source in (folder, folder / "model.onnx"):
        with pytest.raises(ValidationFailed, match="not a path inside"):
            await deploy(source)
    assert workers() == []


@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder"])
async def test_links_out_of_the_bundle(deploy: Any, save: Save, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "elsewhere" / "w.bin"
    secret.parent.mkdir()
    secret.write_bytes(bytes(12))
    folder = save(external("sub/w.bin" if kind == "folder" else "w.bin"), "m/model.onnx") / "m"
    if kind == "symlink":
        (folder / "w.bin").symlink_to(secret)
    elif kind == "hard link":
        (folder / "w.bin").hardlink_to(secret)
    else:
        (folder / "sub").symlink_to(secret.parent)
    with pytest.raises(ValidationFailed, match="link"):
        await deploy(folder / "model.onnx")
    if kind != "hard link":  # of a folder the store takes copies, which are files of their own
        with pytest.raises(ValidationFailed, match="link"):
            await deploy(folder)
    assert workers() == []


@pytest.mark.parametrize("name", ["../evil.onnx", "/tmp/evil.onnx"])
async def test_archives_that_would_write_elsewhere(deploy: Any, name: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, doubler().SerializeToString())
    with pytest.raises(ValidationFailed, match="not a path inside"):
        await deploy(file.getvalue())


async def test_archives_with_links(deploy: Any) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("model.onnx")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        with pytest.raises(ValidationFailed, match="not a plain file"):
            await deploy(file.getvalue())


def two_gigabytes() -> onnx.ModelProto:
    """About a hundred bytes that ask for 2 GiB."""
    shape = h.make_tensor("s", T.INT64, [1], [1 << 29])
    node = h.make_node("ConstantOfShape", ["s"], ["z"], value=h.make_tensor("v", T.FLOAT, [1], [1.0]))
    add = h.make_node("Add", ["x", "z"], ["y"])
    return model_of([node, add], [value("x", T.FLOAT, 1)], [value("y", T.FLOAT, "n")], [shape])


async def test_two_gigabytes_out_of_a_hundred_bytes(deploy: Any, save: Save, runtime: Runtime) -> None:
    folder = save(two_gigabytes())
    with pytest.raises((ValidationFailed, ModelFailed)):
        await ask(runtime, await deploy(folder), {"x": [1.0]})
    await deploy(SENTIMENT_ANALYZER)


async def test_what_loops_for_ever_or_cannot_be_stopped_takes_only_its_caller_s_time(
    deploy: Any, save: Save, runtime: Runtime
) -> None:
    loop = await deploy(save(endless()))
    node = await deploy(save(giant()))
    large = Tensor("float32", (2_000, 2_000), bytes(16_000_000))
    for model, values in ((loop, {"times": 1 << 62, "x": [0, 0, 0]}), (node, {"x": large})):
        with trio.move_on_after(0.2) as deadline:
            async with runtime.infer(model, values) as answer:
                await anext(answer)
        assert deadline.cancelled_caught
    await ask(runtime, loop, {"times": 1, "x": [0, 0, 0]})
    await ask(runtime, node, {"x": [[1.0]]})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
async def test_a_file_that_was_cut_short(deploy: Any, demo: Path, share: float) -> None:
    data = (demo / "model.onnx").read_bytes()
    (demo / "model.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValidationFailed, match=r"model\.onnx"):
        await deploy(demo)
    assert workers() == []


async def test_a_genai_config_loads_no_library(deploy: Any, demo: Path, runtime: Runtime) -> None:
    """onnxruntime-genai would run it: `custom_ops_library` of this file is native code."""
    witness = demo.parent / "ran"
    source = demo.parent / "evil.c"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) void go() {{ fopen("{witness}", "w"); }}'
    )
    if shutil.which("cc"):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", demo / "evil.so", source], check=True)
    else:
        (demo / "evil.so").write_bytes(b"\x7fELF")
    (demo / "genai_config.json").write_text(
        '{"model": {"decoder": {"filename": "model.onnx", "session_options":'
        ' {"custom_ops_library": "evil.so", "enable_profiling": "/tmp/profile"}}}}'
    )
    model = await deploy(demo)
    output, _ = await ask(runtime, model, GOOD)
    assert output["label"] == "positive"
    assert not witness.exists()
    maps = Path(f"/proc/{workers()[0].pid}/maps")
    assert not maps.exists() or "evil.so" not in maps.read_text()


async def test_a_killed_worker_is_replaced_within_a_second_or_so(deploy: Any, runtime: Runtime) -> None:
    model = await deploy(SENTIMENT_ANALYZER)
    workers()[0].kill()
    start = time.perf_counter()
    await ask(runtime, model, GOOD)
    print(f"answered by a fresh worker after {time.perf_counter() - start:.2f} s")


# --- the static check, when it is the one that is attacked


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("os.kill(os.getpid(), 11)", "killed the process that checks it.*SIGSEGV"),
        ("os.write(1, b'\\0\\0\\0\\1x')", "killed the process that checks it"),
        ("time.sleep(60)", "not read within"),
        ("bytearray(1 << 40)", "killed the process that checks it.*MemoryError"),
    ],
)
async def test_a_check_that_dies_refuses_the_file(
    save: Save, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    command = (sys.executable, "-c", f"import os, time; os.read(0, 1 << 20); {program}")
    monkeypatch.setattr("llmesh.runtime.process._COMMAND", command)
    monkeypatch.setattr(scanner, "SCAN_SECONDS", 0.5)
    with pytest.raises(ValidationFailed, match=says):
        await scan_bundle_graph(save(doubler()), "model.onnx")


async def test_no_process_no_check(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmesh.runtime.process._COMMAND", ("/nowhere/python",))
    with pytest.raises(ModelFailed, match="No such file"):
        await scan_bundle_graph(save(doubler()), "model.onnx")


async def test_a_graph_that_grows_in_memory_is_refused(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of empty nodes: two bytes each in the file, a hundred in memory."""
    folder = save(doubler())
    body = b"\x0a\x00" * 3_000_000
    (folder / "model.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(body)) + body)
    monkeypatch.setattr(scanner, "_MEMORY", 400 << 20)
    with pytest.raises(ValidationFailed, match=r"model\.onnx"):
        await scan_bundle_graph(folder, "model.onnx")


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def mutants(good: bytes, count: int) -> list[bytes]:
    chance = random.Random(3)
    found = []
    for _ in range(count):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            if chance.random() < 0.8:
                data[at] = chance.randrange(256)
            else:
                del data[at : at + chance.randrange(1, 20)]
        found.append(bytes(data))
    return found


LOAD_AND_RUN = """
import sys
from pathlib import Path
from llmesh.errors import MeshError
from llmesh.runtime.sandbox import enter
enter([Path(sys.argv[1])], 3 << 30)
from llmesh.runtime.model import open_model
from llmesh.runtime.job import Job
from llmesh.runtime.orders import Load
from llmesh.runtime.settings import WorkerSettings
for name in sys.argv[2:]:
    print(name, flush=True)
    try:
        model = open_model(Load(sys.argv[1], (name,), name, 0, WorkerSettings(threads=1)))
        list(model.step([Job(1, model.check({"x": [[1.0, 2.0, 3.0]]}))]))
    except MeshError:
        pass
"""


async def test_a_thousand_mutations_of_a_good_model(save: Save, tmp_path: Path, runtime: Runtime) -> None:
    """All are checked as a deploy checks; what passes is opened and run as a worker does it.

    One process does many of these here; some are deployed for real at the end.
    """
    folder = save(richer(), "m/model.onnx") / "m"
    (folder / "w.bin").write_bytes(np.arange(3, dtype="<f4").tobytes())
    good = (folder / "model.onnx").read_bytes()
    passed = []
    with trio.fail_after(60):
        async with open_scanner(folder, "model.onnx") as scan:
            for number, data in enumerate(mutants(good, 1_000)):
                name = f"{number}.onnx"
                (folder / name).write_bytes(data)
                facts = await scan(name)
                if isinstance(facts, GraphFacts):
                    assert set(facts.external) <= {"w.bin"}
                    passed.append(name)
                else:
                    assert isinstance(facts, ValidationFailed)
                    assert "killed" not in facts.message
    assert 50 < len(passed) < 950
    rest = passed
    crashes = 0
    while rest:
        command = [sys.executable, "-c", LOAD_AND_RUN, str(folder), *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            break
        crashes += 1
        assert done.returncode < 0, done.stderr[-2000:]  # a signal: the library's own fault
        rest = rest[len(done.stdout.split()) :]
    for name in passed[:3] + passed[-3:]:
        try:
            bundle = await read_bundle(folder / name)
            await runtime.load(bundle)
            await ask(runtime, bundle.id, {"x": [[1, 2, 3]]})
        except MeshError as error:
            assert isinstance(error, ValidationFailed | ModelFailed)  # noqa: PT017


def richer() -> onnx.ModelProto:
    """External data, a branch, a constant: something to mutate."""
    model = external("w.bin")
    branch = h.make_graph(
        [h.make_node("Constant", [], ["c"], value=h.make_tensor("v", T.FLOAT, [3], [1, 2, 3]))],
        "b", [], [value("c", T.FLOAT, 3)],
    )  # fmt: skip
    flag = h.make_tensor("flag", T.BOOL, [], [True])
    model.graph.initializer.append(flag)
    model.graph.node.append(h.make_node("If", ["flag"], ["k"], then_branch=branch, else_branch=branch))
    model.graph.node.append(h.make_node("Mul", ["y", "k"], ["z"]))
    model.graph.output[0].name = "z"
    return model


def test_the_model_that_is_mutated_is_good(save: Save) -> None:
    folder = save(richer())
    (folder / "w.bin").write_bytes(np.arange(3, dtype="<f4").tobytes())
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN, str(folder), "model.onnx"],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
