"""A gateway over fakes: a router that answers, waits or fails as a test says, and a small catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from quart_trio import QuartTrio
from quart_trio.testing import TrioClient

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.exchange import Accepted
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Chunk, InferenceRequest, Result, Skipped, Usage
from llmesh.core.model import Card, ModelInfo, TensorSpec
from llmesh.core.ranking import Candidate, Plan
from llmesh.core.reference import ModelRef
from llmesh.core.wishes import Wishes
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.peers import PeerView
from llmesh.gateway.server import bind, serve
from llmesh.gateway.status import NodeStatus, WorkerView
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.download import Progress
from llmesh.mesh.events import Events

PROVIDER = PeerId("12D3KooW" + "A" * 44)
OTHER = PeerId("12D3KooW" + "C" * 44)
MODEL_ID = ModelId("ab" * 32)


async def label(request: InferenceRequest) -> Result:
    return Result(
        request_id=request.id,
        model=request.model.name,
        model_id=MODEL_ID,
        output={"label": "positive", "score": 0.9876, "echo": request.input.get("text")},
        fee=Amount.parse("0.1"),
        provider=PROVIDER,
        latency_ms=1.23456,
        usage=Usage(input_tokens=4, output_tokens=0, compute_ms=0.5),
        skipped=(Skipped(OTHER, 2002, "It did not accept the request."),),
    )


@dataclass
class FakeRouter:
    answer: Callable[[InferenceRequest], Awaitable[Result]] = label
    after: list[str] = field(default_factory=list)
    """Words that a stream has said before it comes to the answer."""
    requests: list[InferenceRequest] = field(default_factory=list)
    wishes: list[Wishes | None] = field(default_factory=list)
    purses: list[DurablePurse | None] = field(default_factory=list)
    entered: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def infer(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> Result:
        self.requests.append(request)
        self.wishes.append(wishes)
        self.purses.append(purse)
        self.entered.set()
        try:
            return await self.answer(request)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AsyncIterator[AsyncIterator[Accepted | Chunk | Result]]:
        """As `infer`, with the text of its output in pieces of one word."""

        async def events() -> AsyncIterator[Accepted | Chunk | Result]:
            yield Accepted()
            for index, word in enumerate(self.after):
                yield Chunk(index, word)
            result = await self.infer(request, wishes, purse)
            for index, word in enumerate(str(result.output.get("text", "")).split()):
                yield Chunk(index, word if not index else f" {word}")
            yield result

        async with aclosing(events()) as pieces:
            yield pieces

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        self.wishes.append(wishes)
        made, said = offer(request.model.name, "0.25")
        candidate = Candidate(PROVIDER, (), made, said.stake, made.fee)
        return Plan((candidate,), (Skipped(OTHER, 1001, "It asks 3 MESH."),))


def offer(name: str, fee: str, task: str = "text-classification") -> tuple[Offer, Announcement]:
    card = Card(name, version="1.0.0", description="Tells feelings.", licence="Apache-2.0")
    made = Offer(MODEL_ID, card, task, Amount.parse(fee), "model.onnx", "fp32-strict")
    return made, Announcement(PROVIDER, 1, (), (made,), Amount.parse(1000), 0, 1)


class FakeCatalogue:
    offers = (
        offer("sentiment-analyzer", "0.1"),
        offer("gpt-mini", "2", "text-generation"),
        offer("sentiment-xl", "0.5"),
    )

    def info(self, model: ModelId) -> ModelInfo | None:
        spec = TensorSpec("x", "float32", ("batch", 3))
        return ModelInfo(model, "raw-tensors", (spec,), (TensorSpec("y", "int64", (1,)),))

    def lookup(self, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
        named = [pair for pair in self.offers if ref.id or pair[0].card.name == ref.name]
        return [pair for pair in named if ref.id in (None, pair[0].model_id)]

    async def search(
        self, part: str, max_fee: Amount | None, limit: int
    ) -> Sequence[tuple[Offer, Announcement]]:
        found = [pair for pair in self.offers if part in pair[0].card.name]
        return [pair for pair in found if max_fee is None or pair[0].fee <= max_fee][:limit]


class FakeNode:
    ready = True

    def __init__(self) -> None:
        self.events = Events()

    def peers(self, limit: int) -> Sequence[PeerView]:
        known = PeerView(OTHER, "down", ("/ip4/10.0.0.2/tcp/4001",), None, 2, Amount.parse(7), True)
        return [PeerView(PROVIDER, "connected", latency=0.0123456), known][:limit]

    async def status(self) -> NodeStatus:
        return NodeStatus(
            node_id=PROVIDER,
            version="1.2.3",
            peers=42,
            models=3,
            stake=Amount.parse(5000),
            earnings=Amount.parse("123.45"),
            addresses=("/ip4/10.0.0.1/tcp/4001",),
            reachable=True,
            uptime=12.5,
            transfers=(Progress(MODEL_ID, 10, 30, 5.4, (PROVIDER,)),),
            sandbox="confined",
            providers=("cpu",),
            workers=(WorkerView(MODEL_ID, "confined", "cpu", 8, 80_000_000, 2),),
        )


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def catalogue() -> FakeCatalogue:
    return FakeCatalogue()


@pytest.fixture
def app(router: FakeRouter, catalogue: FakeCatalogue, node: FakeNode) -> QuartTrio:
    return create_app(router, catalogue, node, GatewaySettings(max_body=100_000, body_timeout=5))


@pytest.fixture
def client(app: QuartTrio) -> TrioClient:
    return app.test_client()


@pytest.fixture
async def port(app: QuartTrio) -> AsyncIterator[int]:
    """The port of the same app on a real Hypercorn on loopback."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
        yield int(url.rsplit(":", 1)[1])
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + 5
