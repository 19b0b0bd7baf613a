"""GET /metrics: what the node counts, and how it stands now, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from quart import Response

from llmesh.core.meter import Meter
from llmesh.core.meter import Metric as Counted
from llmesh.gateway.callers import Scope
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.status import NodeStatus

__all__ = ["Measured", "metrics_routes"]

_MICRO = 1_000_000


class Measured(Protocol):
    """A node that counts."""

    @property
    def meter(self) -> Meter:
        """Its counters."""

    async def status(self) -> NodeStatus:
        """How it stands."""


def metrics_routes(node: Measured) -> tuple[Route, ...]:
    """The one route; where the gateway asks for keys, Prometheus needs one (`authorization: credentials`)."""
    return (
        Route("GET", "/metrics", Scope.METRICS, partial(get_metrics, node),
              "What the node counts, for Prometheus."),
    )  # fmt: skip


async def get_metrics(node: Measured, request: Request) -> Response:
    """Tell everything."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Shown(node.meter, await node.status()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Shown(Collector):
    """One moment of a node, in Prometheus' own types."""

    def __init__(self, meter: Meter, status: NodeStatus) -> None:
        self._meter = meter
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for metric in Counted:
            about = metric.about
            yield self._histogram(metric) if about.buckets else self._counter(metric)
        yield from _gauges(self._status)

    def _counter(self, metric: Counted) -> Metric:
        family = CounterMetricFamily(metric.about.name, metric.about.help, labels=metric.about.labels)
        for labels, value in self._meter.counters.get(metric, {}).items():
            family.add_metric(labels, value)
        return family

    def _histogram(self, metric: Counted) -> Metric:
        about = metric.about
        family = HistogramMetricFamily(about.name, about.help, labels=about.labels)
        bounds = [*map(str, about.buckets), "+Inf"]
        for labels, histogram in self._meter.histograms.get(metric, {}).items():
            counts = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(labels, counts, histogram.total)
        return family


def _gauges(status: NodeStatus) -> Iterator[Metric]:
    for name, help, value in (
        ("llmesh_peers", "Peers in a session with this node.", status.peers),
        ("llmesh_models", "Models that this node serves.", status.models),
        ("llmesh_uptime_seconds", "Seconds since the start.", status.uptime),
        ("llmesh_stake_mesh", "MESH that this node has bonded.", status.stake.micro / _MICRO),
        ("llmesh_earnings_mesh", "MESH that this node has earned in all.", status.earnings.micro / _MICRO),
        ("llmesh_transfers", "Models that are being fetched.", len(status.transfers)),
    ):
        yield GaugeMetricFamily(name, help, value=value)
    if status.swarm is not None:
        balance = status.swarm.balance.micro / _MICRO
        yield GaugeMetricFamily("llmesh_balance_mesh", "MESH that this node has free.", value=balance)
    calls = GaugeMetricFamily("llmesh_model_calls", "Requests that run or wait.", labels=["model_id"])
    memory = GaugeMetricFamily("llmesh_model_resident_bytes", "Bytes of its worker.", labels=["model_id"])
    for worker in status.workers:
        calls.add_metric([worker.model_id], worker.calls)
        memory.add_metric([worker.model_id], worker.resident)
    yield calls
    yield memory
    up = sum(1 for worker in status.workers if worker.resident)
    yield GaugeMetricFamily("llmesh_workers", "Worker processes that hold a model.", value=up)
