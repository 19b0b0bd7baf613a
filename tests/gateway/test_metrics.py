"""What Prometheus reads: its own parser takes it, and the figures are those of the node."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families
from quart_trio import QuartTrio

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Usage
from llmesh.core.meter import Meter, Metric
from llmesh.errors import NodeBusy
from llmesh.gateway.app import GatewaySettings, application
from llmesh.gateway.gate import Gate
from llmesh.gateway.metrics import metrics_routes
from llmesh.gateway.status import NodeStatus, SwarmView, WorkerView
from llmesh.mesh.events import Events, InferenceEnded, Served
from llmesh.mesh.metering import count

ME = PeerId("12D3KooW" + "A" * 44)
MODEL = ModelId("ab" * 32)


@dataclass
class FakeNode:
    meter: Meter = field(default_factory=Meter)

    async def status(self) -> NodeStatus:
        return NodeStatus(
            node_id=ME, version="1", peers=7, models=2, stake=Amount.parse("1000"),
            earnings=Amount.parse("1.5"), workers=(WorkerView(MODEL, "confined", "cpu", 8, 1234, 3),),
            swarm=SwarmView("aa", "bb", True, Amount.parse("99.5"), 4),
        )  # fmt: skip


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def app(node: FakeNode) -> QuartTrio:
    return application(metrics_routes(node), GatewaySettings(Gate(), meter=node.meter))


async def read(app: QuartTrio) -> dict[tuple[str, ...], float]:
    answer = await app.test_client().get("/metrics")
    assert answer.status_code == 200
    text = (await answer.get_data()).decode()
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_how_it_stands(app: QuartTrio) -> None:
    told = await read(app)
    assert told["llmesh_peers",] == 7
    assert told["llmesh_stake_mesh",] == 1000
    assert told["llmesh_earnings_mesh",] == 1.5
    assert told["llmesh_balance_mesh",] == 99.5
    assert told["llmesh_model_calls", f"model_id={MODEL}"] == 3
    assert told["llmesh_workers",] == 1


async def test_inferences_are_counted_as_they_end(app: QuartTrio, node: FakeNode) -> None:
    events = Events(lambda event: count(node.meter, event))
    done = InferenceEnded(
        RequestId("ab" * 16),
        Served.CALLER,
        "m",
        MODEL,
        ME,
        Amount.parse("0.5"),
        20.0,
        usage=Usage(3, 4, 1.5, 8),
    )
    events.tell(done)
    events.tell(done)
    failed = InferenceEnded(
        RequestId("ab" * 16), Served.PEER, "m", MODEL, ME, Amount(0), 5.0, NodeBusy("Full.")
    )
    events.tell(failed)
    told = await read(app)
    assert told["llmesh_inferences_total", "outcome=answered", "served=caller"] == 2
    assert told["llmesh_inferences_total", "outcome=NodeBusy", "served=peer"] == 1
    assert told["llmesh_tokens_total", "direction=output", "served=caller"] == 8
    assert told["llmesh_batch_size_sum",] == 16
    assert told["llmesh_batch_size_bucket", "le=4"] == 0
    assert told["llmesh_batch_size_bucket", "le=8"] == 2
    assert told["llmesh_fees_micromesh_total", "served=caller"] == 1_000_000
    assert told["llmesh_inference_seconds_count", "served=caller"] == 2
    assert told["llmesh_inference_seconds_bucket", "le=0.01", "served=caller"] == 0
    assert told["llmesh_inference_seconds_bucket", "le=0.025", "served=caller"] == 2
    assert told["llmesh_inference_seconds_sum", "served=caller"] == pytest.approx(0.04)


async def test_answers_are_counted_by_their_route(app: QuartTrio, node: FakeNode) -> None:
    await read(app)
    assert (await app.test_client().get("/nothing/" + "x" * 50)).status_code == 404
    for number in range(3):
        assert (await app.test_client().open("/metrics", method=f"WORD{number}")).status_code == 405
    assert node.meter.value(Metric.HTTP_ANSWERS, "GET", "/metrics", "200") == 1
    assert node.meter.value(Metric.HTTP_ANSWERS, "none", "none", "404") == 1
    assert node.meter.value(Metric.HTTP_ANSWERS, "none", "none", "405") == 3
    assert len(node.meter.counters[Metric.HTTP_ANSWERS]) == 3
