from __future__ import annotations

from itertools import permutations

import pytest

from llmesh.core.ids import PeerId
from llmesh.core.verdict import tried, verdict
from llmesh.errors import (
    MeshError,
    ModelFailed,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    ValidationFailed,
    error_from_code,
)

FAILURES: list[MeshError] = [
    NodeBusy("full", retry_after=2.0, peer_id="x", remote=True),
    ModelFailed("died"),
    NetworkError("lost"),
    NodeUnreachable("dead"),
    ValidationFailed("garbage", peer_id="y"),
]


def test_one_failure_is_its_own_verdict() -> None:
    for error in FAILURES:
        assert verdict([(PeerId("x"), error)]) is error


@pytest.mark.parametrize("first", range(4))
def test_the_most_telling_is_told_in_whatever_order_they_came(first: int) -> None:
    for order in permutations(FAILURES[first:]):
        told = verdict([(PeerId(f"peer-of-{e.name}"), e) for e in order])
        assert type(told) is type(FAILURES[first])
        assert told.message.startswith(FAILURES[first].message)
        assert all(error.name in told.message for error in order)
        assert told.retry_after == FAILURES[first].retry_after
        assert told.remote == FAILURES[first].remote


def test_a_code_of_a_newer_protocol_is_kept() -> None:
    new = error_from_code(9999, "new")
    assert verdict([(PeerId("x"), new), (PeerId("y"), new)]).code == 9999


def test_nobody_tried_says_nothing() -> None:
    assert tried([]) == ""
    assert tried([(PeerId("12D3KooWabcdefgh"), FAILURES[0])]) == " (1 tried: abcdefgh: NodeBusy)"
