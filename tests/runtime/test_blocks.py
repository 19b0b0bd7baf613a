from __future__ import annotations

import errno
import os
import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from llmesh.core import manifest as manifest_module
from llmesh.core.manifest import Block, Manifest, block_digest, check_manifest
from llmesh.errors import Conflict, ValidationFailed
from llmesh.runtime import blocks as blocks_module
from llmesh.runtime.blocks import held_blocks, keep_block, make_manifest, read_block, wrong_file
from llmesh.runtime.bundle import Bundle, read_bundle

BLOCK = 1000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "BLOCK", BLOCK)
    monkeypatch.setattr(blocks_module, "BLOCK", BLOCK)


@pytest.fixture
async def bundle(tmp_path: Path) -> Bundle:
    """A graph of 3 full blocks, a file of 2.5 and an empty one."""
    folder, rng = tmp_path / "theirs", random.Random(1)
    (folder / "data").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x3a\0\x12\xb3\x17" + rng.randbytes(2995))
    (folder / "data/a.bin").write_bytes(rng.randbytes(2500))
    (folder / "data/empty").touch()
    return await read_bundle(folder)


async def in_thread(work, *arguments):
    return await trio.to_thread.run_sync(work, *arguments)


async def test_a_manifest_says_what_the_files_are(bundle: Bundle) -> None:
    manifest = await in_thread(make_manifest, bundle)
    check_manifest(manifest, bundle.id)
    assert [len(entry.digests) for entry in manifest.files] == [3, 0, 3]
    for block in manifest.blocks():
        whole = (bundle.folder / block.path).read_bytes()
        data = whole[block.offset : block.offset + BLOCK]
        assert read_block(bundle.folder, manifest, block) == data


@pytest.mark.parametrize("block", [Block("model.onnx", 3), Block("model.onnx", -1), Block("../x", 0)])
async def test_there_is_no_other_block(bundle: Bundle, block: Block) -> None:
    manifest = await in_thread(make_manifest, bundle)
    with pytest.raises(ValidationFailed, match="no block"):
        read_block(bundle.folder, manifest, block)


@pytest.mark.parametrize("harm", ["change", "cut", "remove", "link"])
async def test_an_altered_file_is_found_out(bundle: Bundle, harm: str) -> None:
    manifest = await in_thread(make_manifest, bundle)
    path = bundle.folder / "model.onnx"
    if harm == "change":
        path.write_bytes(bytes(path.stat().st_size))
    elif harm == "cut":
        os.truncate(path, 2500)
    else:
        path.rename(bundle.folder / "elsewhere")
        if harm == "link":
            path.symlink_to(bundle.folder / "elsewhere")
    with pytest.raises(ValidationFailed):
        read_block(bundle.folder, manifest, Block("model.onnx", 2))
    with pytest.raises(ValidationFailed):
        await in_thread(make_manifest, bundle)


async def keep_all(folder: Path, bundle: Bundle, manifest: Manifest) -> None:
    for block in manifest.blocks():
        data = read_block(bundle.folder, manifest, block)
        assert keep_block(folder, block, data, block_digest(data)) == block_digest(data)


async def test_blocks_are_kept_in_any_order_and_make_the_model(bundle: Bundle, tmp_path: Path) -> None:
    manifest, folder = await in_thread(make_manifest, bundle), tmp_path / "ours"
    assert await in_thread(held_blocks, folder, manifest) == set()
    order = list(manifest.blocks())
    random.Random(2).shuffle(order)
    for number, block in enumerate(order):
        data = read_block(bundle.folder, manifest, block)
        keep_block(folder, block, data, block_digest(data))
        assert await in_thread(held_blocks, folder, manifest) == set(order[: number + 1])
    assert await in_thread(wrong_file, folder, manifest) is None
    assert (await read_bundle(folder)).id == bundle.id


async def test_a_wrong_block_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    manifest, folder = await in_thread(make_manifest, bundle), tmp_path / "ours"
    await in_thread(held_blocks, folder, manifest)
    digest = manifest.files[0].digests[0]
    assert keep_block(folder, Block("data/a.bin", 0), b"wrong", digest) == block_digest(b"wrong")
    assert (folder / "data/a.bin").read_bytes() == b""


async def test_a_kill_at_any_byte_costs_the_block_under_way_only(bundle: Bundle, tmp_path: Path) -> None:
    """Blocks are written in order here; the file then ends at any byte."""
    manifest, folder = await in_thread(make_manifest, bundle), tmp_path / "ours"
    await in_thread(held_blocks, folder, manifest)
    await keep_all(folder, bundle, manifest)
    whole = (folder / "data/a.bin").read_bytes()
    others = {block for block in manifest.blocks() if block.path != "data/a.bin"}
    for size in [*range(0, 2500, 83), 999, 1000, 1001, 2499, 2500]:
        (folder / "data/a.bin").write_bytes(whole[:size])
        expected = {Block("data/a.bin", n) for n in range(3) if size >= min(2500, (n + 1) * BLOCK)}
        assert await in_thread(held_blocks, folder, manifest) == others | expected


async def test_what_is_too_long_or_not_the_file_is_told(bundle: Bundle, tmp_path: Path) -> None:
    manifest, folder = await in_thread(make_manifest, bundle), tmp_path / "ours"
    await in_thread(held_blocks, folder, manifest)
    await keep_all(folder, bundle, manifest)
    with (folder / "data/empty").open("wb") as file:
        file.write(b"x")
    assert await in_thread(wrong_file, folder, manifest) == "data/empty"
    await in_thread(held_blocks, folder, manifest)
    assert await in_thread(wrong_file, folder, manifest) is None


async def test_a_disk_without_room_is_said_before_anything_comes(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await in_thread(make_manifest, bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=manifest.size - 1))
    with pytest.raises(Conflict, match="room"):
        await in_thread(held_blocks, tmp_path / "ours", manifest)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=manifest.size))
    await in_thread(held_blocks, tmp_path / "ours", manifest)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "cannot be written")]
)
async def test_a_disk_that_refuses_is_a_conflict(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    manifest, folder = await in_thread(make_manifest, bundle), tmp_path / "ours"
    await in_thread(held_blocks, folder, manifest)

    def refuse(*_: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(Conflict, match=words):
        await keep_all(folder, bundle, manifest)


async def test_hashing_stops_when_it_is_cancelled(bundle: Bundle, tmp_path: Path) -> None:
    manifest = await in_thread(make_manifest, bundle)

    def cancel_and(work, *arguments) -> None:
        trio.from_thread.run_sync(scope.cancel)
        with pytest.raises(trio.Cancelled):
            work(*arguments)

    for work in (
        partial(make_manifest, bundle),
        partial(held_blocks, tmp_path / "ours", manifest),
        partial(wrong_file, bundle.folder, manifest),
    ):
        with trio.CancelScope() as scope:
            await trio.to_thread.run_sync(cancel_and, work)
