from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import trio

from llmesh.core.model import BundleFile, model_id_of
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ValidationFailed
from llmesh.runtime import bundle as bundle_module
from llmesh.runtime.bundle import read_bundle

from .conftest import Save, doubler, external


async def refused(path: Path) -> str:
    with pytest.raises(ValidationFailed) as caught:
        await read_bundle(path)
    return caught.value.message


async def test_the_id_is_that_of_all_files() -> None:
    bundle = await read_bundle(SENTIMENT_ANALYZER)
    files = [
        BundleFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in SENTIMENT_ANALYZER.iterdir()
    ]
    assert len(files) == 7
    assert bundle.id == model_id_of(files)
    assert bundle.graph == "model.onnx"


async def test_a_graph_beside_its_configs_stands_for_the_folder(demo: Path) -> None:
    whole = await read_bundle(demo)
    assert await read_bundle(demo / "model.onnx") == whole
    (demo / "config.json").unlink()
    assert (await read_bundle(demo / "model.onnx")).files == (await read_bundle(demo)).files
    (demo / "tokenizer.json").unlink()
    assert [file.path for file in (await read_bundle(demo / "model.onnx")).files] == ["model.onnx"]


async def test_a_graph_in_the_onnx_folder_stands_for_the_folder_above(demo: Path) -> None:
    (demo / "onnx").mkdir()
    (demo / "model.onnx").rename(demo / "onnx/model.onnx")
    shutil.copy(demo / "onnx/model.onnx", demo / "onnx/model_q4.onnx")
    whole = await read_bundle(demo)
    assert whole.graph == "onnx/model.onnx"
    assert await read_bundle(demo / "onnx/model.onnx") == whole
    variant = await read_bundle(demo / "onnx/model_q4.onnx")
    assert (variant.id, variant.graph) == (whole.id, "onnx/model_q4.onnx")


async def test_the_only_graph_is_the_graph(save: Save) -> None:
    assert (await read_bundle(save(doubler(), "deep/down/x.onnx"))).graph == "deep/down/x.onnx"


async def test_two_graphs_are_one_too_many(save: Save) -> None:
    save(doubler(), "b.onnx")
    assert "a.onnx, b.onnx" in await refused(save(doubler(), "a.onnx"))


async def test_hidden_files_are_no_part(save: Save) -> None:
    folder = save(doubler())
    before = await read_bundle(folder)
    (folder / ".gitattributes").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git/huge.onnx").write_text("x")
    assert await read_bundle(folder) == before


async def test_external_data_belongs_to_a_bare_graph(save: Save) -> None:
    folder = save(external("./w.bin"), "x.onnx")
    (folder / "w.bin").write_bytes(bytes(12))
    (folder / "unrelated.txt").write_text("x")
    bare = await read_bundle(folder / "x.onnx")
    assert [file.path for file in bare.files] == ["w.bin", "x.onnx"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("bare", ["", "model.onnx"], ids=["folder", "bare"])
async def test_external_data_elsewhere_is_refused(save: Save, location: str, bare: str) -> None:
    folder = save(external(location))
    (folder.parent / "w.bin").write_bytes(bytes(12))
    message = await refused(folder / bare)
    assert "outside its folder" in message or "No such file" in message


@pytest.mark.parametrize("bare", ["", "model.onnx"], ids=["folder", "bare"])
async def test_external_data_is_no_link(save: Save, tmp_path: Path, bare: str) -> None:
    folder = save(external("w.bin"))
    secret = tmp_path.parent / "secret"
    secret.write_bytes(bytes(12))
    (folder / "w.bin").symlink_to(secret)
    assert "w.bin is a symbolic link" in await refused(folder / bare)
    (folder / "w.bin").unlink()
    os.link(secret, folder / "w.bin")
    assert "w.bin has a second name" in await refused(folder / bare)


async def test_external_data_below_a_linked_folder_is_refused(save: Save, tmp_path: Path) -> None:
    folder = save(external("sub/w.bin"), "x.onnx")
    (tmp_path.parent / "elsewhere").mkdir()
    (tmp_path.parent / "elsewhere/w.bin").write_bytes(bytes(12))
    (folder / "sub").symlink_to(tmp_path.parent / "elsewhere")
    assert "sub is a symbolic link" in await refused(folder / "x.onnx")
    assert "sub is a symbolic link" in await refused(folder)


async def test_external_data_in_a_hidden_file_is_refused(save: Save) -> None:
    folder = save(external(".w"))
    (folder / ".w").write_bytes(bytes(12))
    assert ".w, which is hidden" in await refused(folder)


async def test_a_link_is_refused_and_a_linked_folder_is_not(save: Save, tmp_path: Path) -> None:
    folder = save(doubler(), "real/model.onnx") / "real"
    (tmp_path / "alias").symlink_to(folder)
    assert await read_bundle(tmp_path / "alias") == await read_bundle(folder)
    (folder / "notes.txt").symlink_to("/etc/passwd")
    assert "notes.txt is a symbolic link" in await refused(folder)


async def test_a_pipe_is_no_file(save: Save) -> None:
    folder = save(doubler())
    os.mkfifo(folder / "fifo")
    assert "fifo is not a regular file" in await refused(folder)


@pytest.mark.parametrize("name", ["a\nb", "a\x7fb", "\udcff"])
async def test_a_name_that_would_blur_the_id_is_refused(save: Save, name: str) -> None:
    folder = save(doubler())
    (folder / name).write_text("x")
    assert "no name for a file" in await refused(folder)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no graph in it"),
        (b"PK\x03\x04 not onnx at all", "not a whole ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (doubler().SerializeToString()[:-4], "not a whole ONNX file"),
    ],
)
async def test_what_is_not_onnx_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    message = await refused(tmp_path)
    assert message.startswith("model.onnx")
    assert says in message


async def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert "neither a folder nor" in await refused(tmp_path / "none")
    assert "neither a folder nor" in await refused(tmp_path / "none.onnx")
    assert "no .onnx file" in await refused(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    assert "neither a folder nor" in await refused(tmp_path / "x.txt")


async def test_a_bundle_has_bounds(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(doubler())
    (folder / "more").write_bytes(bytes(100))
    monkeypatch.setattr(bundle_module, "_MAX_FILES", 1)
    assert "more than a bundle may" in await refused(folder)
    monkeypatch.setattr(bundle_module, "_MAX_FILES", 2)
    await read_bundle(folder)
    monkeypatch.setattr(bundle_module, "_MAX_BYTES", 100)
    assert "more than a bundle may" in await refused(folder)
    monkeypatch.undo()
    (folder / "/".join("abcdefghij")).mkdir(parents=True)
    assert "folders deep" in await refused(folder)


async def test_a_file_that_changes_under_our_eyes(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(doubler())
    monkeypatch.setattr(bundle_module, "_regular_size", lambda _folder, _name: 1)
    assert "changed while it was read" in await refused(folder)


async def test_reading_can_be_cancelled(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(doubler())
    with (folder / "large").open("wb") as file:
        file.truncate(1 << 40)  # sparse: hours of hashing
    monkeypatch.setattr(bundle_module, "_MAX_BYTES", 1 << 50)
    with trio.move_on_after(0.1) as scope:
        await read_bundle(folder)
    assert scope.cancelled_caught
