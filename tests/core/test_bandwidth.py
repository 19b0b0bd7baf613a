from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.bandwidth import BURST, Bucket, Speedometer


@given(st.floats(1.0, 1e9), st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), max_size=50))
def test_no_more_passes_than_the_rate_allows(rate: float, takes: list[tuple[int, float]]) -> None:
    bucket, now, total = Bucket(rate), 100.0, 0
    for size, pause in takes:
        now += pause
        total += size
        gone_at = now + bucket.take(size, now)
        assert total <= rate * (gone_at - 100.0 + BURST) * (1 + 1e-9) + 1e-6


def test_a_rested_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = Bucket(1000.0)
    assert bucket.take(100, 50.0) == 0
    assert bucket.take(500, 50.0) == pytest.approx(0.5)
    assert bucket.take(500, 50.0) == pytest.approx(1.0)
    assert bucket.take(0, 60.0) == 0


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_is_above_nothing(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Bucket(rate)


def test_a_speed_is_that_of_the_last_seconds() -> None:
    speed = Speedometer(10.0)
    assert speed.rate(10.0) == 0
    speed.passed(100, 11.0)
    assert speed.rate(12.0) == pytest.approx(50)
    speed.passed(500, 20.0)
    assert speed.rate(20.0) == pytest.approx(100)
    assert speed.rate(26.0) == 0
