from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.admission import Admission, Limits, Place, size_of
from llmesh.core.encoding import Tensor
from llmesh.core.ids import PeerId
from llmesh.errors import MeshError, NodeBusy, TooLarge

ANN, BOB, OWN = PeerId("ann"), PeerId("bob"), PeerId("own")
LIMITS = Limits(running=3, per_peer=2, input_bytes=100, held_bytes=250)


def test_each_peer_has_its_share_and_all_have_the_whole() -> None:
    admission = Admission(LIMITS, OWN)
    place = admission.admit(ANN, 1)
    admission.admit(ANN, 1)
    with pytest.raises(NodeBusy, match="one peer"):
        admission.admit(ANN, 1)
    admission.admit(BOB, 1)
    assert admission.load == 1
    with pytest.raises(NodeBusy, match="3 requests are running") as caught:
        admission.admit(BOB, 1)
    assert caught.value.retry_after
    admission.release(place, 0.5)
    admission.admit(BOB, 1)
    assert admission.running == 3


def test_own_attempts_may_take_every_place() -> None:
    admission = Admission(LIMITS, OWN)
    places = [admission.admit(OWN, 1) for _ in range(LIMITS.running)]
    for peer in (OWN, ANN):
        with pytest.raises(NodeBusy, match="3 requests are running"):
            admission.admit(peer, 1)
    admission.release(places[0], 0.5)
    admission.admit(ANN, 1)


def test_the_input_of_one_and_of_all_is_bounded() -> None:
    admission = Admission(LIMITS, OWN)
    with pytest.raises(TooLarge, match="takes 101 bytes"):
        admission.admit(ANN, 101)
    places = [admission.admit(ANN, 100), admission.admit(ANN, 100)]
    with pytest.raises(NodeBusy):
        admission.admit(BOB, 51)
    admission.release(places[0], 1.0)
    admission.admit(BOB, 100)


def test_retry_after_follows_the_time_that_places_are_held() -> None:
    admission = Admission(Limits(running=1, per_peer=1), OWN)
    waits = []
    for seconds in (0.001, 8.0, 8.0, 10_000.0):
        admission.release(admission.admit(ANN, 1), seconds)
        place = admission.admit(ANN, 1)
        with pytest.raises(NodeBusy) as caught:
            admission.admit(BOB, 1)
        admission.release(place, seconds)
        waits.append(caught.value.retry_after or 0)
    assert waits == sorted(waits)
    assert waits[0] < 0.2
    assert waits[-1] == 60


@given(st.lists(st.tuples(st.sampled_from([ANN, BOB]), st.integers(0, 120), st.booleans())))
def test_what_is_released_is_all_that_was_taken(steps: list[tuple[PeerId, int, bool]]) -> None:
    admission = Admission(LIMITS, OWN)
    places: list[Place] = []
    for consumer, size, release in steps:
        if release and places:
            admission.release(places.pop(), 0.1)
        else:
            with suppress(MeshError):
                places.append(admission.admit(consumer, size))
        assert admission.running == len(places) <= LIMITS.running
        assert sum(place.size for place in places) <= LIMITS.held_bytes
    for place in places:
        admission.release(place, 0.1)
    assert admission.running == admission.load == admission._held == 0


def test_size_counts_what_travels() -> None:
    assert size_of({}) == 0
    assert size_of({"a": Tensor("uint8", (1000,), bytes(1000))}) >= 1000
    assert size_of({"text": "\u4f60" * 100}) >= 300
    assert size_of({"a": [[1.5] * 50, {"key": "x" * 60, "half": "\ud800"}, None, True]}) >= 110


def test_size_does_not_recurse() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert size_of({"a": deep}) > 100_000  # type: ignore[dict-item]
