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
from llmesh.runtime.bundle import check_unaltered, read_bundle

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
    assert (await read_bundle(demo, "onnx/model_q4.onnx")).graph == "onnx/model_q4.onnx"
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


@pytest.mark.parametrize(
    ("graphs", "first"),
    [
        (["model_fp16", "model_q4", "model_quantized"], "model_quantized.onnx"),
        (["onnx/model_q4", "onnx/model_fp16"], "onnx/model_q4.onnx"),
        (["model_int8", "model"], "model.onnx"),
    ],
)
async def test_of_variants_the_one_that_a_processor_likes_is_taken(
    save: Save, graphs: list[str], first: str
) -> None:
    for graph in graphs:
        folder = save(doubler(), f"{graph}.onnx")
    assert (await read_bundle(folder)).graph == first


async def test_a_graph_that_is_not_there_is_said_with_those_that_are(save: Save) -> None:
    with pytest.raises(ValidationFailed, match=r"no graph 'model_q4\.onnx'; it has model\.onnx"):
        await read_bundle(save(doubler()), "model_q4.onnx")


async def test_a_bundle_that_was_altered_is_seen(demo: Path) -> None:
    bundle = await read_bundle(demo)
    await trio.to_thread.run_sync(check_unaltered, bundle)
    data = bytearray((demo / "config.json").read_bytes())
    data[-3] ^= 1
    (demo / "config.json").write_bytes(data)
    with pytest.raises(ValidationFailed, match=r"config\.json was altered"):
        await trio.to_thread.run_sync(check_unaltered, bundle)


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
async def test_external_data_elsewhere_is_no_part(save: Save, location: str) -> None:
    folder = save(external(location))
    (folder.parent / "w.bin").write_bytes(bytes(12))
    message = await refused(folder / "model.onnx")
    assert "not a path inside the bundle" in message or "missing" in message


async def test_external_data_is_no_link(save: Save, tmp_path: Path) -> None:
    folder = save(external("w.bin"))
    secret = tmp_path.parent / "secret"
    secret.write_bytes(bytes(12))
    (folder / "w.bin").symlink_to(secret)
    assert "lies behind a link" in await refused(folder / "model.onnx")
    assert "w.bin is a symbolic link" in await refused(folder)
    (folder / "w.bin").unlink()
    os.link(secret, folder / "w.bin")
    assert "not a file of its own" in await refused(folder / "model.onnx")


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
        (b"", "not an ONNX"),
        (b"PK\x03\x04 not onnx at all", "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (doubler().SerializeToString()[:-4], "cut short"),
    ],
)
async def test_what_is_not_onnx_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    message = await refused(tmp_path / "model.onnx")
    assert message.startswith("model.onnx")
    assert says in message


async def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert "There is nothing at" in await refused(tmp_path / "none")
    assert "There is nothing at" in await refused(tmp_path / "none.onnx")
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
