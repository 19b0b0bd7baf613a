"""Meter: what a node's parts count and measure, as plain numbers; who shows them is another matter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

__all__ = ["Histogram", "Meter", "Metric"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Kind(NamedTuple):
    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


class Metric(Enum):
    """Everything that is counted, with its name, its labels and, where it is measured, its buckets."""

    INFERENCES = _Kind(
        "llmesh_inferences", "Inferences that ended, by whom they were for and how.", ("served", "outcome")
    )
    LATENCY = _Kind(
        "llmesh_inference_seconds", "Seconds from hearing of an inference to its end.", ("served",), _SECONDS
    )
    BATCH = _Kind(
        "llmesh_batch_size", "Requests that one run of a model answered.", (), (1, 2, 4, 8, 16, 32, 64)
    )
    TOKENS = _Kind("llmesh_tokens", "Text tokens of inferences that were answered.", ("served", "direction"))
    FEES = _Kind("llmesh_fees_micromesh", "Fees of inferences that were answered.", ("served",))
    SESSION_BYTES = _Kind("llmesh_session_bytes", "Bytes of the sessions with peers.", ("direction",))
    DHT_CALLS = _Kind("llmesh_dht_calls", "Calls of the hash table.", ("call", "outcome"))
    HTTP_ANSWERS = _Kind("llmesh_http_answers", "Answers of the gateway.", ("method", "route", "status"))

    @property
    def about(self) -> _Kind:
        """Its name and the rest."""
        return self.value


@dataclass(slots=True)
class Histogram:
    """How many values fell into each bucket (the last is for those above all), and their sum."""

    counts: list[int]
    total: float = 0.0


@dataclass(slots=True)
class Meter:
    """Counts; no call waits or fails.  One event loop uses it."""

    counters: dict[Metric, dict[tuple[str, ...], float]] = field(default_factory=dict)
    histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = field(default_factory=dict)

    def count(self, metric: Metric, *labels: str, amount: float = 1) -> None:
        """Add to a counter; `labels` are values in the order of the metric's."""
        series = self.counters.setdefault(metric, {})
        series[labels] = series.get(labels, 0) + amount

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Put a value into its bucket."""
        buckets = metric.about.buckets
        series = self.histograms.setdefault(metric, {})
        histogram = series.get(labels)
        if histogram is None:
            histogram = series[labels] = Histogram([0] * (len(buckets) + 1))
        histogram.counts[bisect_left(buckets, value)] += 1
        histogram.total += value

    def value(self, metric: Metric, *labels: str) -> float:
        """What a counter has come to."""
        none: Mapping[tuple[str, ...], float] = {}
        return self.counters.get(metric, none).get(labels, 0)
