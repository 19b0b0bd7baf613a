from __future__ import annotations

from itertools import permutations

import pytest

from llmesh.core.ids import PeerId
from llmesh.core.verdict import named_once, tried, verdict
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
    NodeBusy("full", retry_after=2.0, peer_id="x", remote=True, next_step="Wait."),
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
        assert told.next_step == FAILURES[first].next_step
        assert told.remote == FAILURES[first].remote


def test_a_code_of_a_newer_protocol_is_kept() -> None:
    new = error_from_code(9999, "new")
    assert verdict([(PeerId("x"), new), (PeerId("y"), new)]).code == 9999


def test_nobody_tried_says_nothing() -> None:
    assert tried([]) == ""
    assert tried([(PeerId("12D3KooWabcdefgh"), FAILURES[0])]) == " (1 tried: abcdefgh: NodeBusy)"


P = PeerId("12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq")
REFUSED = "/ip4/127.0.0.1/tcp/{0}: Cannot connect to /ip4/127.0.0.1/tcp/{0}/p2p/{1}: 127.0.0.1:{0} failed"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            f"The session with {P} is over: The link to peer {P} broke: the peer ended it.",
            f"The session with {P} is over: the peer ended it.",
        ),
        (
            f"Peer {P} cannot be reached: {REFUSED.format(1, P)}; {REFUSED.format(2, P)}.",
            f"Peer {P} cannot be reached: 127.0.0.1:1 failed; 127.0.0.1:2 failed.",
        ),
        (
            f"Peer {P} cannot be reached: {REFUSED.format(1, P)}; /dns/a/tcp/2: no answer in 5 s.",
            f"Peer {P} cannot be reached: 127.0.0.1:1 failed; /dns/a/tcp/2: no answer in 5 s.",
        ),
        (f"{P}: {P} went away.", f"{P}: went away."),
    ],
)
def test_a_peer_is_named_once(said: str, told: str) -> None:
    assert named_once(said, P) == told
    assert told.count(P) == 1


@pytest.mark.parametrize(
    "said",
    [
        "",
        "This node is shutting down.",
        f"{P} did not answer the dial.",
        f"The session with {P} is over: The peer was silent for 20 s.",
        f"Peer {P} cannot be reached: no usable address is known.",
    ],
)
def test_what_names_it_once_stays(said: str) -> None:
    assert named_once(said, P) == said
