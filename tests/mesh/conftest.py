"""Small meshes in memory: real sessions, providers and routers; what is known of offers is a board."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from llmesh.core.admission import Limits
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.credentials import Credentials
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.payments import Payments, open_payments
from llmesh.mesh.provider import Provider
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.router import Router, RouterSettings
from llmesh.mesh.tabs import PaymentSettings, Tabs
from llmesh.mesh.teller import Teller
from llmesh.mesh.till import Till
from llmesh.net import payment
from llmesh.net.call import Handler
from llmesh.net.inference import PROTOCOL, handler
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.sessions import Sessions, open_sessions
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.echo import EchoRuntime
from tests.mesh.journals import QuickJournal
from tests.mesh.people import BANK, GENESIS, START, credentials


def clock() -> float:
    """Seconds since 1970 that follow trio's clock."""
    return START + trio.current_time()


class Board:
    """Offers that everyone knows, and those that only `find` brings."""

    def __init__(self) -> None:
        self.known: dict[PeerId, Announcement] = {}
        self.hidden: dict[PeerId, Announcement] = {}
        self.searches = 0

    def lookup(self, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
        return [(o, a) for a in self.known.values() for o in a.offers if _names(ref, o)]

    async def find(self, ref: ModelRef) -> None:
        self.searches += 1
        self.known |= self.hidden


def _names(ref: ModelRef, offer: Offer) -> bool:
    if ref.id:
        return offer.model_id == ref.id
    return offer.card.name == ref.name and ref.version in ("", offer.card.version)


@dataclass
class Node:
    peer_id: PeerId
    host: MemoryHost
    sessions: Sessions
    runtime: EchoRuntime
    provider: Provider
    reputation: Reputation
    router: Router
    board: Board
    stake: Amount
    credentials: Credentials
    journal: QuickJournal
    till: Till
    payments: Payments
    nursery: trio.Nursery

    async def deploy(self, name: str, model: str, fee: str = "0", version: str = "1.0.0") -> None:
        """Deploy a model whose id is this digit over and over, and tell everyone."""
        bundle = Bundle(Path("/nowhere"), (), ModelId(model * 64), "model.onnx")
        await self.provider.deploy(bundle, Card(name, version), Amount.parse(fee))
        self.announce()

    def announce(self) -> None:
        """Tell everyone what is on offer."""
        own, now = self.credentials, clock()
        offers = tuple(replace(offer, terms=own.terms(offer, now)) for offer in self.provider.offers)
        self.board.known[self.peer_id] = Announcement(
            self.peer_id, 1, self.host.addresses, offers, self.stake, 0, 1 << 40, own.binding(now)
        )

    def hide(self) -> None:
        """Let the offers be known to `find` only."""
        self.board.hidden[self.peer_id] = self.board.known.pop(self.peer_id)

    def claim(self, **changes: object) -> None:
        """Let the announcement say something else than the provider does."""
        announcement = self.board.known[self.peer_id]
        offers = tuple(
            replace(
                changed := replace(offer, **changes),  # type: ignore[arg-type]
                terms=self.credentials.terms(changed, clock()),
            )
            for offer in announcement.offers
        )
        self.board.known[self.peer_id] = replace(announcement, offers=offers)


class Mesh:
    def __init__(self, stack: AsyncExitStack) -> None:
        self.network = MemoryNetwork()
        self.board = Board()
        self.down: set[PeerId] = set()
        self.ledger = MemoryLedger(GENESIS, BANK.sign, clock)
        self._stack = stack

    async def add(
        self,
        name: str,
        *,
        runtime: EchoRuntime | None = None,
        limits: Limits | None = None,
        settings: RouterSettings | None = None,
        stake: int = 0,
        answer: Handler | None = None,
        ledger: MemoryLedger | None = None,
    ) -> Node:
        """A node that is up; `answer` is a rude one in place of its provider's."""
        runtime, ledger = runtime or EchoRuntime(), ledger or self.ledger
        own = credentials(name, ledger.chain)
        peer, journal = own.node, QuickJournal(own.node)
        till = Till(own, journal, ledger, clock)
        provider = Provider(peer, runtime, till, limits or Limits())
        host = await self._stack.enter_async_context(self.network.host(peer))
        handlers = {
            PROTOCOL: answer or handler(provider.serve),
            payment.PROTOCOL: payment.handler(provider.answer),
        }
        sessions = await self._stack.enter_async_context(open_sessions(host, handlers))
        reputation = Reputation(self.down.__contains__)
        teller = Teller(ledger, journal, own.signer, clock)
        tabs = Tabs(own, ledger, journal, teller, sessions, PaymentSettings(clock=clock))
        payments = await self._stack.enter_async_context(open_payments(tabs))
        router = Router(provider, sessions, self.board, reputation, payments, settings or RouterSettings())
        nursery = await self._stack.enter_async_context(_tasks())
        for task in (till.run, payments.run, teller.run):
            nursery.start_soon(task)
        return Node(
            peer, host, sessions, runtime, provider, reputation, router, self.board, Amount(stake), own,
            journal, till, payments, nursery,
        )  # fmt: skip


@asynccontextmanager
async def _tasks() -> AsyncGenerator[trio.Nursery]:
    """A nursery whose tasks end with it."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_mesh() -> AsyncGenerator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(stack)


@pytest.fixture
def open_mesh() -> Callable[[], AbstractAsyncContextManager[Mesh]]:
    """Opens a mesh without nodes; leaving its block stops all that were added."""
    return _open_mesh
