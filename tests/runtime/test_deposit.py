"""Whatever a model comes as, it ends in the store under the same id."""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmesh.core.model import Card
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import Conflict, ValidationFailed
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.deposit import card_of, deposit
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.store import Store, open_store

from .conftest import Save, ask, doubler


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    return await open_store(tmp_path / "store")


def packed(folder: Path, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, path.name)
    else:
        with tarfile.open(fileobj=file, mode=kind) as tar:  # type: ignore[call-overload]
            tar.add(folder, "a-folder")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
async def test_bytes_of_an_archive_are_the_model_in_it(store: Store, kind: str) -> None:
    bundle = await deposit(store, packed(SENTIMENT_ANALYZER, kind))
    assert bundle.id == (await read_bundle(SENTIMENT_ANALYZER)).id


async def test_bytes_of_a_graph_are_a_bundle_of_one_file(store: Store, save: Save) -> None:
    path = save(doubler()) / "model.onnx"
    bundle = await deposit(store, path.read_bytes())
    assert bundle.id == (await deposit(store, path)).id
    with pytest.raises(ValidationFailed, match="not an ONNX file"):
        await deposit(store, b"nothing of the kind")


async def test_a_variant_is_named_however_the_model_comes(store: Store, demo: Path) -> None:
    shutil.copy(demo / "model.onnx", demo / "model_q4.onnx")
    for source in (demo, packed(demo, "zip")):
        assert (await deposit(store, source)).graph == "model.onnx"
        assert (await deposit(store, source, "model_q4.onnx")).graph == "model_q4.onnx"
    assert (await deposit(store, demo / "model_q4.onnx")).graph == "model_q4.onnx"
    assert len(store.models()) == 1


async def test_a_full_disk_is_a_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llmesh.runtime.incoming._append", full)
    with pytest.raises(Conflict, match="disk is full"):
        await deposit(store, b"x")


async def test_edits_of_the_original_change_nothing_and_of_the_copy_are_seen(
    runtime: Runtime, store: Store, demo: Path
) -> None:
    bundle = await deposit(store, demo)
    await runtime.load(bundle)
    (demo / "tokenizer.json").write_text("{}")
    await runtime.unload(bundle.id)
    await runtime.load(bundle)
    await ask(runtime, bundle.id, {"text": "很好"})
    await runtime.unload(bundle.id)
    copy = bundle.folder / "tokenizer.json"
    copy.write_bytes(copy.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(ValidationFailed, match=r"tokenizer\.json was altered"):
        await runtime.load(bundle)


async def test_the_card_that_a_bundle_suggests(save: Save) -> None:
    assert await card_of(await read_bundle(save(doubler())), "fallback") == Card("fallback")
    said = {"version": "2.1", "licence": "MIT", "task": "raw-tensors", "description": ""}
    folder = save(doubler(), llmesh=said)
    assert await card_of(await read_bundle(folder), "fallback") == Card("fallback", "2.1", "", "MIT")
    save(doubler(), llmesh={**said, "name": "own"})
    assert (await card_of(await read_bundle(folder), "fallback")).name == "own"


@pytest.mark.parametrize("content", [[], {"name": 1}, "x" * 100_000])
async def test_a_card_that_makes_no_sense(save: Save, content: Any) -> None:
    folder = save(doubler())
    (folder / "llmesh.json").write_text(json.dumps(content))
    with pytest.raises(ValidationFailed, match=r"llmesh\.json"):
        await card_of(await read_bundle(folder), "x")
