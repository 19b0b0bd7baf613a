"""What a meter counts of a node's events."""

from __future__ import annotations

from llmesh.core.meter import Meter, Metric
from llmesh.mesh.events import InferenceEnded, MeshEvent

__all__ = ["count"]


def count(meter: Meter, event: MeshEvent) -> None:
    """Count an inference that is over, by how it ended; other events are no figures."""
    if not isinstance(event, InferenceEnded):
        return
    served = event.served.value
    outcome = "answered" if event.error is None else event.error.name
    meter.count(Metric.INFERENCES, served, outcome)
    meter.observe(Metric.LATENCY, event.latency_ms / 1000, served)
    if event.usage.shared:
        meter.observe(Metric.BATCH, event.usage.shared)
    meter.count(Metric.TOKENS, served, "input", amount=event.usage.input_tokens)
    meter.count(Metric.TOKENS, served, "output", amount=event.usage.output_tokens)
    meter.count(Metric.FEES, served, amount=event.fee.micro)
