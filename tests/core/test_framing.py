"""Whatever way a stream is cut on its journey, the same frames come out."""

from __future__ import annotations

import itertools
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.framing import HEADER, Splitter, with_length
from llmesh.errors import ValidationFailed


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(n % (len(stream) + 1) for n in at), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=300), max_size=12), st.lists(st.integers(0, 5000), max_size=30))
def test_frames_survive_any_cutting(bodies: list[bytes], at: list[int]) -> None:
    splitter = Splitter(300)
    stream = b"".join(map(with_length, bodies))
    out = [body for piece in cut(stream, at) for body in splitter.feed(piece)]
    assert out == bodies


@given(st.binary(max_size=2000), st.lists(st.integers(0, 5000), max_size=10))
def test_noise_never_gives_a_frame_over_the_limit(noise: bytes, at: list[int]) -> None:
    splitter = Splitter(100)
    with suppress(ValidationFailed):
        for piece in cut(noise, at):
            assert all(len(body) <= 100 for body in splitter.feed(piece))


@pytest.mark.parametrize("length", [101, 1 << 31, (1 << 32) - 1])
def test_a_giant_length_is_refused_when_it_is_seen(length: int) -> None:
    splitter = Splitter(100)
    assert splitter.feed(length.to_bytes(HEADER, "big")[:3]) == []
    with pytest.raises(ValidationFailed, match=f"{length} bytes"):
        splitter.feed(length.to_bytes(HEADER, "big")[3:])


def test_the_limit_itself_is_allowed() -> None:
    assert Splitter(100).feed(with_length(b"x" * 100)) == [b"x" * 100]


def test_a_length_reserves_no_memory() -> None:
    splitters = [Splitter() for _ in range(50)]
    tracemalloc.start()
    try:
        for splitter in splitters:
            splitter.feed((1 << 20).to_bytes(HEADER, "big") + b"x")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_single_bytes_of_a_long_frame_are_cheap() -> None:
    splitter = Splitter()
    stream = with_length(b"x" * 200_000)
    out = [body for i in range(len(stream)) for body in splitter.feed(stream[i : i + 1])]
    assert out == [b"x" * 200_000]
