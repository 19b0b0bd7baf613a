from __future__ import annotations

import contextlib
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmesh.errors import MeshError, TooLarge, ValidationFailed
from llmesh.runtime.archive import ArchiveLimits, unpack

FILES = {"config.json": b"{}", "onnx/model.onnx": bytes(range(256)) * 40, "empty": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def make(kind: str, path: Path) -> Path:
    return make_zip(path, FILES) if kind == "zip" else make_tar(path, FILES, kind)


def tar_of(path: Path, *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for info in infos:
            file.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:xz"])
def test_what_goes_in_comes_out(tmp_path: Path, out: Path, kind: str) -> None:
    unpack(make(kind, tmp_path / "bundle"), out)
    assert contents(out) == FILES


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", "a\\..\\evil", "x" * 1025])
@pytest.mark.parametrize("pack", [make_zip, make_tar])
def test_paths_that_leave_the_folder_are_refused(
    tmp_path: Path, out: Path, name: str, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    archive = pack(tmp_path / "bundle", {"ok": b"1", name: b"2"})
    with pytest.raises(ValidationFailed, match="not a path inside"):
        unpack(archive, out)
    assert not (tmp_path / "evil").exists()
    assert set(contents(out)) <= {"ok"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_tar_links_and_devices_are_refused(tmp_path: Path, out: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValidationFailed, match="not a plain file"):
        unpack(tar_of(tmp_path / "t", info), out)


def test_zip_links_are_refused(tmp_path: Path, out: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ValidationFailed, match="not a plain file"):
        unpack(tmp_path / "z", out)


def test_bombs_are_refused_before_they_unpack(tmp_path: Path, out: Path) -> None:
    archive = make_zip(tmp_path / "z", {"bomb": bytes(100 << 20)})
    with pytest.raises(TooLarge):
        unpack(archive, out)
    assert contents(out) == {}


@pytest.mark.parametrize("limits", [ArchiveLimits(size=4500), ArchiveLimits(entries=3)])
def test_limits_hold_over_all_entries(tmp_path: Path, out: Path, limits: ArchiveLimits) -> None:
    archive = make_tar(tmp_path / "t", {f"f{i}": bytes(1000) for i in range(5)})
    with pytest.raises(TooLarge):
        unpack(archive, out, limits)


def test_a_size_that_lies_is_found(tmp_path: Path, out: Path) -> None:
    archive = make_zip(tmp_path / "z", {"f": bytes(5000)})
    archive.write_bytes(
        archive.read_bytes().replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    with pytest.raises(ValidationFailed):
        unpack(archive, out)
    assert sum(map(len, contents(out).values())) <= 10


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("a", "a/b"), ("a/b", "a")])
def test_one_name_twice_is_refused(tmp_path: Path, out: Path, names: tuple[str, str]) -> None:
    with pytest.raises(ValidationFailed):
        unpack(tar_of(tmp_path / "t", *map(tarfile.TarInfo, names)), out)


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"x" * 10_000])
def test_other_files_are_refused(tmp_path: Path, out: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValidationFailed) as caught:
        unpack(tmp_path / "f", out)
    assert "\n" not in caught.value.message


def test_a_file_of_another_kind_is_told_what_is_taken(tmp_path: Path, out: Path) -> None:
    (tmp_path / "notes.md").write_bytes(b"hello")
    with pytest.raises(ValidationFailed, match=r"notes\.md is neither an \.onnx file nor a \.zip or \.tar"):
        unpack(tmp_path / "notes.md", out)
    assert contents(out) == {}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["zip", "w", "w:gz"]), st.integers(0, 2**32))
def test_damage_never_escapes_the_folder(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("damage")
    archive = make(kind, tmp_path / "bundle")
    rng, data = random.Random(seed), bytearray(archive.read_bytes())
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    archive.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
    (tmp_path / "out").mkdir()
    with contextlib.suppress(MeshError):
        unpack(archive, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "out"}
