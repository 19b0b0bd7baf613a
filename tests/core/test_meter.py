"""A meter adds up, whatever the order, and every value falls into one bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.meter import Meter, Metric


@given(st.lists(st.tuples(st.sampled_from(["sent", "received"]), st.integers(0, 1 << 40))))
def test_counters_add_up(counted: list[tuple[str, int]]) -> None:
    meter = Meter()
    for label, amount in counted:
        meter.count(Metric.SESSION_BYTES, label, amount=amount)
    for label in ("sent", "received"):
        total = sum(amount for each, amount in counted if each == label)
        assert meter.value(Metric.SESSION_BYTES, label) == total


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_every_value_is_in_one_bucket(values: list[float]) -> None:
    meter = Meter()
    for value in values:
        meter.observe(Metric.LATENCY, value, "caller")
    histogram = meter.histograms[Metric.LATENCY]["caller",]
    assert sum(histogram.counts) == len(values)
    bounds = Metric.LATENCY.about.buckets
    assert histogram.counts[0] == sum(value <= bounds[0] for value in values)
    assert histogram.counts[-1] == sum(value > bounds[-1] for value in values)
    assert histogram.total == sum(values)
