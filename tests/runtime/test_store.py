from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import trio

from llmesh.core.ids import ModelId
from llmesh.errors import Conflict, ModelNotFound, TooLarge, ValidationFailed
from llmesh.runtime import store as store_module
from llmesh.runtime.bundle import read_bundle
from llmesh.runtime.store import Store, Stored, open_store

DEMO = Path(__file__).parent.parent.parent / "llmesh/demo/sentiment-analyzer"
SIZE = sum(path.stat().st_size for path in DEMO.iterdir())


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    return await open_store(tmp_path / "store")


def names(store: Store) -> list[str]:
    return [stored.id for stored in store.models()]


async def test_the_same_bytes_are_the_same_model_however_they_come(store: Store, tmp_path: Path) -> None:
    wanted = (await read_bundle(DEMO)).id
    zipped, wrapped, tarred = (tmp_path / name for name in ("a.zip", "b.zip", "c.tar.gz"))
    with zipfile.ZipFile(zipped, "w") as plain, zipfile.ZipFile(wrapped, "w") as inside:
        for path in DEMO.iterdir():
            plain.write(path, path.name)
            inside.write(path, f"sentiment-analyzer/{path.name}")
    shutil.make_archive(str(tarred).removesuffix(".tar.gz"), "gztar", DEMO)
    for path in (DEMO, DEMO / "model.onnx", zipped, wrapped, tarred):
        bundle = await store.add(path)
        assert bundle.id == wanted
        assert bundle.folder.is_relative_to(tmp_path / "store")
    assert names(store) == [wanted]
    assert store.used() == SIZE
    assert list((tmp_path / "store/staging").iterdir()) == []


async def test_a_model_is_opened_by_its_id_and_verified(store: Store) -> None:
    added = await store.add(DEMO)
    assert await store.open(added.id) == added
    with (added.folder / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with pytest.raises(ValidationFailed, match="altered"):
        await store.open(added.id)


async def test_a_path_with_nothing_at_it_is_called_that(store: Store, tmp_path: Path) -> None:
    for name in ("none", "none.onnx", "none.zip"):
        with pytest.raises(ValidationFailed, match=rf"There is nothing at .*{name}\."):
            await store.add(tmp_path / name)


async def test_what_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(ModelNotFound):
        await store.open(ModelId("0" * 64))
    with pytest.raises(ValidationFailed):
        await store.open(ModelId("../evil"))
    await store.remove(ModelId("0" * 64))


async def test_a_removed_model_gives_its_space_back(store: Store, tmp_path: Path) -> None:
    added = await store.add(DEMO)
    await store.remove(added.id)
    assert names(store) == []
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file()]


async def test_the_quota_holds(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store", quota=SIZE - 1)
    with pytest.raises(TooLarge):
        await store.add(DEMO)
    assert names(store) == []
    assert list((tmp_path / "store/staging").iterdir()) == []


def another(tmp_path: Path, number: int) -> Path:
    """The demo model and one byte."""
    folder = tmp_path / f"m{number}"
    shutil.copytree(DEMO, folder)
    (folder / "extra").write_bytes(bytes([number]))
    return folder


async def filled(tmp_path: Path, in_use: list[ModelId], count: int = 3) -> tuple[Store, list[ModelId]]:
    """A full store, its models all long unused, the first the longest."""
    store = await open_store(tmp_path / "store", count * (SIZE + 1), lambda: in_use)
    ids = []
    for number in range(count):
        ids.append((await store.add(another(tmp_path, number))).id)
        os.utime(tmp_path / "store/models" / ids[-1], (number, number))
    return store, ids


@pytest.mark.parametrize("way", ["folder", "archive", "pieces", "transfer"])
async def test_what_is_longest_unused_makes_room_for_what_comes(tmp_path: Path, way: str) -> None:
    in_use: list[ModelId] = []
    store, ids = await filled(tmp_path, in_use)
    in_use.append(ids[0])
    new = another(tmp_path, 9)
    archive = Path(shutil.make_archive(str(tmp_path / "new"), "zip", new))
    if way == "folder":
        added = await store.add(new)
    elif way == "archive":
        added = await store.add(archive)
    elif way == "pieces":
        async with store.incoming() as incoming:
            await incoming.write(archive.read_bytes())
            added = await store.add(await incoming.finish())
    else:
        model = (await read_bundle(new)).id
        await store.make_room(SIZE + 1, model)
        with store.receiving(model, SIZE + 1) as folder:
            shutil.copytree(new, folder, dirs_exist_ok=True)
            added = await store.adopt(model)
    assert set(names(store)) == {ids[0], ids[2], added.id}
    assert list((tmp_path / "store/staging").glob("tmp*")) == []


async def test_nothing_goes_where_room_cannot_be_made(tmp_path: Path) -> None:
    in_use: list[ModelId] = []
    store, ids = await filled(tmp_path, in_use)
    in_use += ids[:2]
    with pytest.raises(TooLarge, match="are taken"):
        await store.make_room(2 * SIZE)
    assert set(names(store)) == set(ids)


async def test_what_was_just_used_does_not_go(tmp_path: Path) -> None:
    store, ids = await filled(tmp_path, [])
    for model in ids[:2]:
        await store.open(model)
    with pytest.raises(TooLarge):
        await store.make_room(2 * SIZE)
    await store.make_room(SIZE)
    assert set(names(store)) == set(ids[:2])
    added = await store.add(another(tmp_path, 9))  # to be served in a moment
    with pytest.raises(TooLarge):
        await store.make_room(SIZE)
    assert added.id in names(store)


async def test_what_is_being_fetched_does_not_go(tmp_path: Path) -> None:
    store, ids = await filled(tmp_path, [], count=2)
    one, other = ModelId("1" * 64), ModelId("2" * 64)
    await store.make_room(SIZE, one)
    assert names(store) == [ids[1]]
    with store.receiving(one, SIZE) as folder:
        (folder / "half").write_bytes(bytes(SIZE // 2))
        await store.make_room(SIZE, other)
        assert names(store) == []
        with pytest.raises(TooLarge):
            await store.make_room(SIZE + 3, other)
        assert (folder / "half").exists()


async def test_a_smaller_quota_is_kept_to_from_the_start(tmp_path: Path) -> None:
    _, ids = await filled(tmp_path, [])
    store = await open_store(tmp_path / "store", 2 * (SIZE + 1))
    await store.make_room(0)
    assert names(store) == ids[1:]


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "_copy_file", full)
    with pytest.raises(Conflict, match="disk is full"):
        await store.add(DEMO)
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "_fsync", full)
    with pytest.raises(Conflict, match="disk is full"):
        await store.add(DEMO)
    assert names(store) == []
    assert list((tmp_path / "store/staging").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(Conflict, match="disk is full"):
        await store.add(DEMO)
    with pytest.raises(Conflict, match="disk is full"), store.receiving(ModelId("a" * 64), 1):
        pass
    with pytest.raises(Conflict, match="disk is full"):
        async with store.incoming():
            pass


async def test_a_broken_bundle_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "bad.zip", tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(ValidationFailed):
            await store.add(path)
    assert names(store) == []


async def test_a_cancelled_add_leaves_nothing(store: Store, tmp_path: Path) -> None:
    for deadline in (0.0, 0.001, 0.005, 0.02):
        with trio.move_on_after(deadline):
            await store.add(DEMO)
        assert list((tmp_path / "store/staging").iterdir()) == []
    for stored in store.models():
        await store.open(stored.id)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_cancel_stops_the_writing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """A large model must not hold up a node that stops until the last of it is on the disk."""
    path = Path(shutil.make_archive(str(tmp_path / "demo"), "zip", DEMO)) if packed else DEMO
    asked = []

    def check() -> None:
        asked.append(1)
        trio.from_thread.run_sync(scope.cancel)
        trio.from_thread.check_cancelled()

    monkeypatch.setattr(store_module, "check_cancelled", check)
    with trio.CancelScope() as scope:
        await store.add(path)
    assert asked == [1]
    assert list((tmp_path / "store/staging").iterdir()) == []
    assert names(store) == []


async def test_a_model_can_be_removed_from_a_full_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    added = await store.add(DEMO)
    monkeypatch.setattr(os, "mkdir", full)
    await store.remove(added.id)
    assert names(store) == []
    assert list((tmp_path / "store/staging").iterdir()) == []


async def test_what_is_under_way_is_not_looked_into(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be renamed at any moment, and who makes room must not fail by that."""
    look = store_module._stored

    def stored(folder: Path) -> Stored:
        if folder.suffix == ".partial":
            raise FileNotFoundError(folder)
        return look(folder)

    monkeypatch.setattr(store_module, "_stored", stored)
    with store.receiving(ModelId("a" * 64), 10):
        await store.make_room(10)


async def test_a_transfer_is_kept_over_restarts_and_adopted_when_whole(store: Store, tmp_path: Path) -> None:
    wanted = await read_bundle(DEMO)
    folder = store.partial(wanted.id)
    shutil.copy(DEMO / "model.onnx", folder)
    again = await open_store(tmp_path / "store")
    assert (again.partial(wanted.id) / "model.onnx").exists()
    for path in DEMO.iterdir():
        shutil.copy(path, folder)
    assert (await again.adopt(wanted.id)).id == wanted.id
    assert names(again) == [wanted.id]
    assert list((tmp_path / "store/staging").iterdir()) == []


async def test_a_transfer_of_something_else_is_not_adopted_and_stays(store: Store) -> None:
    model = ModelId("0" * 64)
    shutil.copy(DEMO / "model.onnx", store.partial(model))
    with pytest.raises(ValidationFailed, match="not 000"):
        await store.adopt(model)
    assert names(store) == []
    assert (store.partial(model) / "model.onnx").exists()
    await store.remove(model)
    assert list(store.partial(model).iterdir()) == []


async def test_a_transfer_holds_its_room_while_it_runs(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store", quota=SIZE + 100)
    one, other = ModelId("1" * 64), ModelId("2" * 64)
    with store.receiving(one, 60):
        with pytest.raises(Conflict, match="already"), store.receiving(one, 60):
            pass
        with pytest.raises(TooLarge), store.receiving(other, SIZE + 41):
            pass
        with store.receiving(other, 41), pytest.raises(TooLarge):
            await store.add(DEMO)
        await store.add(DEMO)
    with pytest.raises(TooLarge), store.receiving(one, 101):
        pass
    with store.receiving(one, 100):
        pass


async def test_what_is_left_of_a_transfer_takes_room_until_it_is_removed(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store", quota=SIZE + 100)
    left, other = ModelId("1" * 64), ModelId("2" * 64)
    (store.partial(left) / "file").write_bytes(bytes(90))
    store = await open_store(tmp_path / "store", quota=SIZE + 100)
    with pytest.raises(TooLarge), store.receiving(other, SIZE + 20):
        pass
    with store.receiving(left, SIZE + 100), pytest.raises(TooLarge):  # its own bytes are part of it
        await store.make_room(100)
    await store.make_room(SIZE + 20)
    with store.receiving(other, SIZE + 20):
        pass


async def test_a_model_that_came_another_way_meanwhile_is_kept(store: Store, tmp_path: Path) -> None:
    added = await store.add(DEMO)
    for path in DEMO.iterdir():
        shutil.copy(path, store.partial(added.id))
    assert await store.adopt(added.id) == added
    assert list((tmp_path / "store/staging").iterdir()) == []


CRASHING = """
import sys, trio
from pathlib import Path
from llmesh.runtime.store import open_store
async def main():
    store = await open_store(Path(sys.argv[1]))
    while True:
        bundle = await store.add(Path(sys.argv[2]))
        print("added", flush=True)
        await store.remove(bundle.id)
trio.run(main)
"""


async def test_removing_makes_nothing_that_a_kill_could_leave(store: Store, monkeypatch) -> None:
    added = await store.add(DEMO)
    made: list[Path] = []
    monkeypatch.setattr(Path, "mkdir", lambda path, *_, **__: made.append(path))
    await store.remove(added.id)
    assert not made
    assert not store.models()


async def test_a_kill_at_any_moment_leaves_whole_models_only(tmp_path: Path) -> None:
    for delay in (0.0, 0.003, 0.007, 0.013, 0.02):
        child = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(tmp_path / "store"), str(DEMO)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        await trio.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        store = await open_store(tmp_path / "store")
        for stored in store.models():
            assert (await store.open(stored.id)).id == stored.id
        assert list((tmp_path / "store/staging").iterdir()) == []
