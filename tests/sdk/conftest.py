"""A gateway over fakes, served by a real Hypercorn in a thread, so that any event loop may call it."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.exchange import Accepted
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Chunk, InferenceRequest, Result, Usage
from llmesh.core.model import Card, ModelInfo, TensorSpec
from llmesh.core.ranking import Candidate, Plan
from llmesh.core.wishes import Wishes
from llmesh.errors import Conflict, ModelNotFound
from llmesh.gateway.app import create_app
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.deploy import deploy_routes
from llmesh.gateway.server import bind, serve
from llmesh.gateway.status import NodeStatus
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.events import Events, MeshEvent, ModelDeployed

PROVIDER = PeerId("12D3KooW" + "B" * 44)
MODEL_ID = ModelId("cd" * 32)


async def echo(request: InferenceRequest) -> Result:
    usage = Usage(input_tokens=3, compute_ms=0.25)
    return Result(
        request.id, str(request.model), MODEL_ID, request.input, Amount.parse("0.1"), PROVIDER, 2.5, usage
    )


class FakeIncoming:
    """What is uploaded lies in the fake's memory."""

    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh
        mesh.received.clear()

    async def write(self, piece: bytes) -> None:
        self._mesh.received += piece

    async def finish(self) -> Path:
        return Path("received")


@dataclass
class FakeMesh:
    """Router, catalogue and node in one; `answer` may be replaced by a test."""

    url: str = ""
    answer: Callable[[InferenceRequest], Awaitable[Result]] = echo
    requests: list[InferenceRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ready: bool = True
    wishes: list[Wishes | None] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    deployed: list[tuple[bytes, str, Amount, str, str]] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    token: trio.lowlevel.TrioToken | None = None

    def tell(self, event: MeshEvent) -> None:
        """From any other thread."""
        trio.from_thread.run_sync(self.events.tell, event, trio_token=self.token)

    async def infer(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> Result:
        self.requests.append(request)
        self.wishes.append(wishes)
        try:
            return await self.answer(request)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AsyncIterator[AsyncIterator[Accepted | Chunk | Result]]:
        """Each word of the text by itself, then what `infer` gives."""

        async def events() -> AsyncIterator[Accepted | Chunk | Result]:
            yield Accepted()
            for index, word in enumerate(str(request.input.get("text", "")).split()):
                yield Chunk(index, f" {word}" if index else word)
            yield await self.infer(request, wishes, purse)

        async with aclosing(events()) as pieces:
            yield pieces

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        [(offer, said)] = await self.search("", None, 1)
        return Plan((Candidate(PROVIDER, (), offer, said.stake, offer.fee),))

    def info(self, model: ModelId) -> ModelInfo | None:
        spec = TensorSpec("x", "float32", ("batch", 3))
        return ModelInfo(model, "raw-tensors", (spec,), (TensorSpec("y", "int64", (1,)),))

    async def search(
        self, part: str, max_fee: Amount | None, limit: int
    ) -> Sequence[tuple[Offer, Announcement]]:
        card = Card("sentiment-analyzer", "1.0.0", "Tells feelings.", "Apache-2.0")
        offer = Offer(MODEL_ID, card, "text-classification", Amount.parse("0.1"))
        announcement = Announcement(PROVIDER, 1, (), (offer,), Amount.parse(1000), 0, 1)
        matches = part in card.name and (max_fee is None or offer.fee <= max_fee)
        return [(offer, announcement)] * limit if matches else []

    def incoming(self) -> AbstractAsyncContextManager[FakeIncoming]:
        return nullcontext(FakeIncoming(self))

    async def deploy(self, source: Path, name: str, fee: Amount, version: str, description: str) -> ModelId:
        if name == "taken":
            raise Conflict("taken:1.0.0 is another model here.")
        self.deployed.append((bytes(self.received), name, fee, version, description))
        self.events.tell(ModelDeployed(Offer(MODEL_ID, Card(name, version, description), "tensors", fee)))
        return MODEL_ID

    async def remove(self, model: ModelId) -> None:
        if not self.serves(model):
            raise ModelNotFound(f"This node does not serve model {model}.")
        self.deployed.clear()

    def serves(self, model: ModelId) -> bool:
        return model == MODEL_ID and bool(self.deployed)

    def offers_of(self, model: ModelId) -> Sequence[tuple[Offer, Announcement]]:
        return []

    async def status(self) -> NodeStatus:
        return NodeStatus(PROVIDER, "1.0.0", 42, 3, Amount.parse(5000), Amount.parse("123.45"))


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    fake = FakeMesh()
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.Event]] = queue.SimpleQueue()

    async def run() -> None:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            more = (*deploy_routes(fake), *batch_routes(fake))
            app = create_app(fake, fake, fake, None, more)
            fake.url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            fake.token = trio.lowlevel.current_trio_token()
            started.put((trio.lowlevel.current_trio_token(), stop))

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    token, stop = started.get(timeout=10)
    yield fake
    trio.from_thread.run_sync(stop.set, trio_token=token)
    thread.join(timeout=10)
    assert not thread.is_alive()
