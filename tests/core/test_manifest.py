from __future__ import annotations

from dataclasses import replace

import pytest

from llmesh.core.ids import ModelId
from llmesh.core.manifest import BLOCK, Block, Manifest, ManifestFile, block_digest, check_manifest
from llmesh.core.model import BundleFile
from llmesh.errors import TooLarge, ValidationFailed


def entry(path: str, size: int = 1, blocks: int | None = None, sha256: str = "0" * 64) -> ManifestFile:
    count = -(-size // BLOCK) if blocks is None else blocks
    return ManifestFile(BundleFile(path, size, sha256), (bytes(32),) * count)


def check(*files: ManifestFile, max_size: int = 1 << 40) -> None:
    manifest = Manifest(files)
    check_manifest(manifest, manifest.model_id, max_size)


def test_a_good_manifest_passes_and_knows_its_blocks() -> None:
    files = (entry("a", 0), entry("b/c", 2 * BLOCK + 1))
    check(*files)
    assert list(Manifest(files).blocks()) == [Block("b/c", n) for n in range(3)]
    assert [files[1].block_size(n) for n in range(3)] == [BLOCK, BLOCK, 1]
    assert Block("b/c", 2).offset == 2 * BLOCK
    assert Manifest(files).size == 2 * BLOCK + 1


@pytest.mark.parametrize(
    "path",
    ["", ".", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "a\0", "a\nb", "x" * 1025, ".git/a", "a/.b"],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(ValidationFailed, match="path"):
        check(entry(path))


@pytest.mark.parametrize(
    "bad", [entry("a", -1, 0), entry("a", sha256="0" * 63), entry("a", 1, 2), entry("a", BLOCK + 1, 1)]
)
def test_impossible_files_are_refused(bad: ManifestFile) -> None:
    with pytest.raises(ValidationFailed):
        check(bad)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "A"), ("a", "a/b"), ("x/Y", "X/y/z")])
def test_one_path_twice_is_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(ValidationFailed, match="twice"):
        check(*map(entry, paths))


def test_numbers_and_sizes_are_bounded() -> None:
    with pytest.raises(ValidationFailed, match="files"):
        check()
    with pytest.raises(ValidationFailed, match="files"):
        check(*(entry(str(n)) for n in range(2001)))
    with pytest.raises(TooLarge):
        check(entry("a", 100), max_size=99)


def test_files_come_in_order() -> None:
    with pytest.raises(ValidationFailed, match="order"):
        check(entry("b"), entry("a"))


def test_digests_have_32_bytes() -> None:
    with pytest.raises(ValidationFailed):
        check(replace(entry("a"), digests=(b"short",)))


def test_another_models_manifest_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="is of model"):
        check_manifest(Manifest((entry("a"),)), ModelId("0" * 64), 1 << 40)


def test_a_block_is_known_by_its_blake3() -> None:
    """The digest of no bytes is that of the paper's reference implementation."""
    known = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert block_digest(b"").hex() == known
