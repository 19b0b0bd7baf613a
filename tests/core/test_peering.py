from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.ids import PeerId
from llmesh.core.peering import MUTE_AFTER, REST, SPREADING, Backoff, Pace, Rota

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


@given(st.integers(1, 5), st.lists(st.floats(0, 30), max_size=60))
def test_a_pace_holds_in_every_window(burst: int, gaps: list[float]) -> None:
    pace, now, taken = Pace(burst, 10.0), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if pace.take("key", now):
            taken.append(now)
        else:
            assert pace.wait("key", now) > 0
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = burst + (taken[last] - taken[first]) / 10.0
            assert last - first + 1 <= allowed + 1e-6


def test_a_pace_is_per_key_and_says_when_to_come_back() -> None:
    pace = Pace(2, 10.0)
    assert [pace.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert pace.take("b", 0.0)
    assert pace.wait("a", 4.0) == 6.0
    assert pace.take("a", 10.0)
    assert not pace.take("a", 10.0)


def test_a_pace_forgets_who_is_at_rest() -> None:
    pace = Pace(1, 10.0)
    for number in range(5000):
        assert pace.take(number, number * 1.0)
    assert len(pace._due) < 1100


def test_a_crowded_pace_is_not_looked_through_each_time() -> None:
    pace = Pace(1, 10.0)
    for number in range(5000):
        assert pace.take(number, 0.0)
    assert pace._crowded > 5000
    for number in range(9000):
        assert pace.take(number, 20.0 + number)
    assert len(pace._due) < 1100


def test_a_backoff_doubles_up_to_its_longest() -> None:
    backoff, pauses = Backoff(1.0, 5.0), list[float]()
    for _ in range(5):
        backoff.failed(100.0)
        pauses.append(backoff.next_at - 100.0)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_strangers_come_first() -> None:
    rota = Rota(Random(1))
    assert rota.next([], 0.0) is None
    rota.asked(A, 0, 0.0, 1.0)
    rota.asked(B, 3, 0.0, 1.0)
    assert {rota.next([A, B, C], 2.0) for _ in range(20)} == {C}
    rota.forget(A)
    assert {rota.next([A, B], 2.0) for _ in range(20)} == {A}


def mute_then(oldest: float) -> Rota:
    """A and B gave nothing twice, then C gives something issued at `oldest`; the last was at 1000."""
    rota = Rota(Random(1))
    for now in range(1001 - MUTE_AFTER, 1001):
        rota.asked(A, 0, float("inf"), now)
        rota.asked(B, 1, now, now)
    rota.asked(C, 1, oldest, 1001.0)
    return rota


def test_who_is_mute_while_others_know_something_rests() -> None:
    rota = mute_then(oldest=1000 - SPREADING - 1)
    assert {rota.next([A, B, C], 1002.0) for _ in range(40)} == {B, C}
    assert rota.next([A], 1002.0) == A, "unless there is nobody else"
    assert A in {rota.next([A, B, C], 1002.0 + REST) for _ in range(40)}


def test_nobody_rests_for_not_knowing_what_is_only_just_out() -> None:
    rota = mute_then(oldest=1000 - SPREADING + 1)
    assert {rota.next([A, B, C], 1002.0) for _ in range(60)} == {A, B, C}


def test_the_rota_remembers_a_bounded_number() -> None:
    rota = Rota(Random(1))
    for number in range(3000):
        rota.asked(PeerId(f"{number}"), 0, 0.0, float(number))
    assert len(rota._known) <= 1024
    assert rota.acquaintance(PeerId("2999")).asked_at == 2999
