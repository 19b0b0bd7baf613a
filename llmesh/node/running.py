"""Node: what a running node does for its owner, and what its gateway asks of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from llmesh import __version__
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.encoding import Json, Tensor, Value
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.core.meter import Meter
from llmesh.core.model import Card, ModelInfo
from llmesh.core.peering import Pace
from llmesh.core.ranking import Plan
from llmesh.core.reference import ModelRef, model_name, model_version
from llmesh.core.wishes import Wishes
from llmesh.errors import ModelNotFound, NotFound, ValidationFailed
from llmesh.gateway.keys import Keys
from llmesh.gateway.peers import PeerView
from llmesh.gateway.status import NodeStatus, WorkerView
from llmesh.gateway.wallet import MOST_ACCUSED, Wallet
from llmesh.gateway.webhooks.courier import Courier
from llmesh.journal.channels import earned
from llmesh.journal.open import Journal
from llmesh.journal.purse import DurablePurse
from llmesh.mesh.announcer import Announcer
from llmesh.mesh.backlog import Backlog
from llmesh.mesh.discovery import Discovery
from llmesh.mesh.download import Progress, Report
from llmesh.mesh.events import Events, TransferProgressed
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.market import Market
from llmesh.mesh.reachability import Reachability
from llmesh.mesh.router import Router, Streamed
from llmesh.mesh.teller import accusations
from llmesh.mesh.witness import asked
from llmesh.net.host import Host
from llmesh.node.drain import Drain
from llmesh.node.neighbours import neighbours
from llmesh.node.shelf import Shelf
from llmesh.node.swarm import LIFETIME, Swarm
from llmesh.node.values import name_of
from llmesh.runtime.incoming import Incoming
from llmesh.runtime.orders import Abilities
from llmesh.runtime.runtime import Runtime, WorkerStatus
from llmesh.runtime.store import Store

__all__ = ["Node", "Rooms"]

_FREE = Amount(0)
TRANSFER_PERIOD = 1.0
"""Seconds between two events of one transfer, its end apart."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The parts of a node, open and running."""

    events: Events
    meter: Meter
    courier: Courier
    backlog: Backlog
    host: Host
    journal: Journal
    keys: Keys
    swarm: Swarm
    discovery: Discovery
    market: Market
    shelf: Shelf
    announcer: Announcer
    router: Router
    reachability: Reachability
    runtime: Runtime
    store: Store
    fetcher: Fetcher


class Node:
    """A running node; only `open_node` makes one.  Every method is for its own trio loop."""

    def __init__(self, rooms: Rooms, drain: Drain) -> None:
        self.url = ""
        self.abilities: Abilities | None = None
        self._transfers: dict[ModelRef, Progress] = {}
        self._rooms = rooms
        self._drain = drain
        self._since = trio.current_time()

    @property
    def meter(self) -> Meter:
        """What it has counted since it started."""
        return self._rooms.meter

    @property
    def courier(self) -> Courier:
        """What tells its webhooks."""
        return self._rooms.courier

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""
        return self._rooms.host.peer_id

    @property
    def events(self) -> Events:
        """Where it tells what happens."""
        return self._rooms.events

    @property
    def dial_addresses(self) -> tuple[str, ...]:
        """Where other nodes dial it, with its peer id."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self._rooms.host.addresses)

    def whereabouts(self) -> dict[str, Json]:
        """Where programs and nodes find it."""
        return {"node_id": self.peer_id, "url": self.url, "addresses": list(self.dial_addresses)}

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What it serves."""
        return self._rooms.shelf.offers

    @property
    def wallet(self) -> Wallet:
        """Where its money is written down."""
        rooms = self._rooms
        ledger, account = rooms.swarm.ledger, rooms.swarm.signer.address
        return Wallet(rooms.journal, ledger, account, self._name_of, rooms.backlog.catch_up)

    def _name_of(self, model: ModelId) -> str:
        """What a model is called, if an offer of it is known."""
        return next((offer.card.name for offer, _ in self.offers_of(model)), "")

    @property
    def has_keys(self) -> bool:
        """Whether its gateway knows a key that has not been revoked."""
        return self._rooms.keys.any

    @property
    def ready(self) -> bool:
        """Whether requests are answered: from the moment it has its URL until it shuts down."""
        return bool(self.url) and not self._drain.closed

    async def deploy(
        self,
        source: Path | bytes,
        name: str | None = None,
        fee: Amount | None = None,
        version: str = "1.0.0",
        description: str = "",
    ) -> ModelId:
        """Copy a model into the store, serve it from now on, over restarts too, and announce it.

        `source` is a folder, an `.onnx` file or an archive of a folder, as a path or its bytes; without
        a name the model takes that of its path.  One that is served already gets the new name and fee.
        Raises InsufficientStake, ValidationFailed, Conflict, TooLarge; then, and when cancelled, what
        is served stays as it was.
        """
        named = name if name is not None else name_of(source) if isinstance(source, Path) else ""
        card = Card(model_name(named), model_version(version), description)
        return await self._rooms.shelf.deploy(source, card, fee or _FREE)

    async def serve(self, source: Path, name: str | None, fee: Amount, version: str) -> ModelId:
        """`deploy`, for this life of the node only."""
        named = name_of(source) if name is None else name
        card = Card(model_name(named), model_version(version))
        return await self._rooms.shelf.serve(source, card, fee)

    async def restore(self) -> None:
        """Serve again what was deployed in earlier lives; what cannot be is told in the log."""
        await self._rooms.shelf.restore()

    def incoming(self) -> AbstractAsyncContextManager[Incoming]:
        """Where a model is written piece by piece, to be deployed before the block ends."""
        return self._rooms.shelf.incoming()

    async def remove(self, model: ModelId) -> None:
        """Serve a model no longer, also after a restart, and remove the store's copy; see `Shelf.remove`."""
        await self._rooms.shelf.remove(model)

    def serves(self, model: ModelId) -> bool:
        """Whether it has a model on offer."""
        return self._rooms.shelf.serves(model)

    def offers_of(self, model: ModelId) -> Sequence[tuple[Offer, Announcement]]:
        """Every offer of a model, by whomever, as known here and now."""
        return self._rooms.market.lookup(ModelRef("", id=model))

    def peers(self, limit: int) -> list[PeerView]:
        """At most so many other nodes, those in a session with this one first."""
        return neighbours(self.peer_id, self._rooms.discovery, self._rooms.market, limit)

    async def fetch(self, ref: ModelRef, report: Report) -> ModelId:
        """Bring a model of the mesh into the store, verified; see `Fetcher.fetch`.

        While it lasts, `status` shows how far it is.
        """

        pace = Pace(1, TRANSFER_PERIOD)

        def tell(progress: Progress) -> None:
            self._transfers[ref] = progress
            if pace.take(ref, trio.current_time()) or progress.done == progress.total:
                self.events.tell(TransferProgressed(progress))
            report(progress)

        try:
            return (await self._rooms.fetcher.fetch(ref, tell)).id
        finally:
            self._transfers.pop(ref, None)

    async def replicate(self, ref: ModelRef, fee: Amount | None, report: Report) -> ModelId:
        """Fetch a model and serve it too, under the name and, if none is given, at the fee of its offer.

        Raises what `fetch` and `deploy` raise, and ModelNotFound where nobody offers it.
        """
        model = await self.fetch(ref, report)
        found = [offer for offer, _ in self._rooms.market.lookup(ModelRef("", id=model))]
        if not found:
            raise ModelNotFound(f"Nobody offers {ref} any more; its files are in the store.")
        # The same files may be on offer under other names, too.
        meant = [offer for offer in found if _is_meant(offer.card, ref)]
        cheapest = min(meant or found, key=lambda offer: offer.fee)
        bundle = await self._rooms.store.open(model)
        return await self._rooms.shelf.adopt(bundle, cheapest.card, cheapest.fee if fee is None else fee)

    def info(self, model: ModelId) -> ModelInfo | None:
        """What a model of its own takes and gives."""
        return self._rooms.shelf.info(model)

    def lookup(self, ref: ModelRef) -> Sequence[tuple[Offer, Announcement]]:
        """Every offer that the reference names, as known here and now."""
        return self._rooms.market.lookup(ref)

    async def search(
        self, part: str, max_fee: Amount | None, limit: int
    ) -> Sequence[tuple[Offer, Announcement]]:
        """Offers of the mesh, as known here and now."""
        return self._rooms.market.search(part, max_fee, limit)

    async def infer(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> Result:
        """Run a request on whoever of the mesh serves it; NodeBusy while the node shuts down."""
        with self._drain.entered(), asked(self.events, request) as witness:
            witness.result = await self._rooms.router.infer(request, wishes, purse)
            return witness.result

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, wishes: Wishes | None = None, purse: DurablePurse | None = None
    ) -> AsyncGenerator[AsyncIterator[Streamed]]:
        """`infer`, as the answer comes; leaving the block stops the work."""
        with self._drain.entered(), asked(self.events, request) as witness:
            async with (
                self._rooms.router.stream(request, wishes, purse) as events,
                aclosing(witness.watching(events)) as watched,
            ):
                yield watched

    async def plan(self, request: InferenceRequest, wishes: Wishes | None = None) -> Plan:
        """Who would serve a request, in order, and at what fee; nothing is run."""
        return await self._rooms.router.plan(request, wishes)

    async def request(
        self,
        model: str,
        values: Mapping[str, Value] | str,
        timeout: float = 30.0,
        max_fee: Amount | None = None,
    ) -> Result:
        """`infer` for plain arguments.  Raises ValidationFailed where they make no request."""
        named = {"text": values} if isinstance(values, str) else values
        if not isinstance(named, Mapping) or not all(isinstance(key, str) for key in named):
            raise ValidationFailed('The input must be values by name, such as {"text": "..."}, or a text.')
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise ValidationFailed(f"The timeout must be a number of seconds, not {timeout!r}.")
        id = RequestId(secrets.token_hex(16))
        input = {key: _tensor(value) for key, value in named.items()}
        return await self.infer(InferenceRequest(id, ModelRef.parse(model), input, timeout, max_fee))

    async def status(self) -> NodeStatus:
        """How it stands at this moment."""
        rooms = self._rooms
        reached = rooms.reachability.reached
        ledger, owner = rooms.swarm.ledger, rooms.swarm.signer.address
        account = await ledger.account(owner)
        accused = await accusations(rooms.journal, ledger.chain, owner, MOST_ACCUSED)
        return NodeStatus(
            node_id=self.peer_id,
            version=__version__,
            peers=len(rooms.discovery.sessions.live()),
            models=len(self.offers),
            stake=account.stake,
            earnings=await rooms.journal.read(earned),
            addresses=rooms.host.addresses,
            reachable=None if reached is None else bool(reached),
            uptime=trio.current_time() - self._since,
            sandbox=self.abilities.level.name.lower() if self.abilities else "",
            providers=self.abilities.providers if self.abilities else (),
            workers=tuple(map(_view, rooms.runtime.workers())),
            transfers=tuple(self._transfers.values()),
            swarm=rooms.swarm.view(account.balance, len(accused)),
        )

    @property
    def swarm(self) -> Swarm:
        """Its part in its swarm."""
        return self._rooms.swarm

    async def invite(self, credit: Amount = _FREE, lifetime: float = LIFETIME) -> str:
        """One line by which another machine joins this node's swarm, for so many seconds.

        A credit is taken once, by whoever joins first.  Raises as `Swarm.invite`.
        """
        return await self.swarm.invite(self.dial_addresses, credit, lifetime)

    async def send(self, to: Address | PeerId, amount: Amount) -> Address:
        """Move money of this node's to an account or a peer's account; which one.  See `Swarm.send`.

        Raises NotFound for a peer whose account on this ledger is not known here.
        """
        account = self._account_of(to) if isinstance(to, str) else to
        await self.swarm.send(account, amount)
        return account

    def _account_of(self, peer: PeerId) -> Address:
        account = self._rooms.market.account_of(peer)
        if account is None:
            raise NotFound(
                f"{peer} has announced no account in this node's swarm.",
                next_step="Give its account, which `llmesh wallet` shows there (0x and 40 digits).",
            )
        return account

    async def reachable_at(self) -> tuple[str, ...]:
        """Wait until a peer has dialled back; the addresses that work, none for a consumer only."""
        return await self._rooms.reachability.known()


def _tensor(value: Value) -> Value:
    """An array of numpy or of a library like it becomes a Tensor; whatever else stays."""
    if isinstance(value, Tensor) or not all(hasattr(value, name) for name in ("dtype", "shape", "tobytes")):
        return value
    array: Any = value
    return Tensor(str(array.dtype), tuple(array.shape), array.tobytes())


def _view(worker: WorkerStatus) -> WorkerView:
    return WorkerView(
        worker.model, worker.level.name.lower(), worker.provider, worker.batch, worker.resident, worker.calls
    )


def _is_meant(card: Card, ref: ModelRef) -> bool:
    return card.name == ref.name and ref.version in ("", card.version)
