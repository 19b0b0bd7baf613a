"""Manifests and what is asked, to bytes and back, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.ids import ModelId
from llmesh.core.manifest import Block, Manifest, ManifestFile
from llmesh.core.model import BundleFile
from llmesh.errors import ValidationFailed
from llmesh.wire import artifact_pb2 as pb
from llmesh.wire.artifact import (
    MAX_MANIFEST,
    decode_fetch,
    decode_manifest,
    decode_want,
    encode_fetch,
    encode_manifest,
    encode_want,
)  # fmt: skip

PATHS = st.text(st.characters(codec="utf-8"), max_size=60)
DIGESTS = st.binary(min_size=32, max_size=32)
FILES = st.builds(
    ManifestFile,
    st.builds(BundleFile, PATHS, st.integers(0, (1 << 64) - 1), DIGESTS.map(bytes.hex)),
    st.lists(DIGESTS, max_size=4).map(tuple),
)


@given(st.lists(FILES, max_size=5).map(tuple).map(Manifest))
def test_a_manifest_survives_the_journey(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(DIGESTS.map(bytes.hex).map(ModelId), PATHS, st.integers(0, (1 << 32) - 1))
def test_what_is_asked_survives_the_journey(model: ModelId, path: str, number: int) -> None:
    assert decode_fetch(encode_fetch(model)) == model
    assert decode_want(encode_want(Block(path, number))) == Block(path, number)


@given(st.binary(max_size=200))
def test_noise_is_something_or_refused(noise: bytes) -> None:
    for decode in (decode_fetch, decode_manifest, decode_want):
        with suppress(ValidationFailed):
            decode(noise)  # any other exception fails the test


@pytest.mark.parametrize(
    "file",
    [
        pb.File(path="a", size=1, sha256=bytes(31), blocks=bytes(32)),
        pb.File(path="a", size=1, blocks=bytes(32)),
        pb.File(path="a", size=1, sha256=bytes(32), blocks=bytes(33)),
        pb.File(path="x" * 1025, size=1, sha256=bytes(32)),
    ],
)
def test_files_of_the_wrong_shape_are_refused(file: pb.File) -> None:
    with pytest.raises(ValidationFailed):
        decode_manifest(pb.Manifest(files=[file]).SerializeToString())


def test_sizes_and_numbers_are_bounded() -> None:
    file = pb.File(path="a", size=1, sha256=bytes(32), blocks=bytes(32))
    with pytest.raises(ValidationFailed, match="2000 files"):
        decode_manifest(pb.Manifest(files=[file] * 2001).SerializeToString())
    with pytest.raises(ValidationFailed, match="limit"):
        decode_manifest(bytes(MAX_MANIFEST + 1))
    with pytest.raises(ValidationFailed, match="limit"):
        decode_want(encode_want(Block("x" * 9000, 1)))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_model_id_has_32_bytes(length: int) -> None:
    with pytest.raises(ValidationFailed):
        decode_fetch(pb.Fetch(model_id=bytes(length)).SerializeToString())
