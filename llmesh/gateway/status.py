"""GET /api/v1/status and the health checks: what this node is and whether it is well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quart import Response

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId
from llmesh.errors import NodeBusy
from llmesh.gateway.request import Request
from llmesh.gateway.schema import HealthBody, StatusBody, SwarmBody, TransferBody, WorkerBody, encode, mesh
from llmesh.mesh.download import Progress
from llmesh.mesh.events import Events

__all__ = ["NodeStatus", "NodeView", "SwarmView", "WorkerView", "get_health", "get_readiness", "get_status"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """How one model of this node is kept: its sandbox, what runs its graph, bytes in memory, calls now.

    `resident` is 0 while the model rests; `batch` requests may share a run.
    """

    model_id: ModelId
    sandbox: str
    provider: str
    batch: int
    resident: int
    calls: int


@dataclass(frozen=True, slots=True)
class SwarmView:
    """The node's swarm: `id` is its genesis' hash in hex, `entries` how much of the log is here.

    `followed` is how many members give the log now; `alarm` says why its ledger is not to be trusted;
    `accused` is how many providers were caught cheating.
    """

    id: str
    account: str
    issuer: bool
    balance: Amount
    entries: int
    followed: int = 0
    alarm: str = ""
    accused: int = 0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at one moment: counts of peers and of its own models; `uptime` in seconds.

    `reachable` is None while no peer has tried to dial back; `sandbox` (a level) and `providers` are
    what this machine allows its workers, empty until that has been tried.
    """

    node_id: PeerId
    version: str
    peers: int
    models: int
    stake: Amount
    earnings: Amount
    addresses: tuple[str, ...] = ()
    reachable: bool | None = None
    uptime: float = 0.0
    sandbox: str = ""
    providers: tuple[str, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    transfers: tuple[Progress, ...] = ()
    swarm: SwarmView | None = None


class NodeView(Protocol):
    """What the gateway may ask its node."""

    @property
    def ready(self) -> bool:
        """Whether inference requests can be served now."""

    @property
    def events(self) -> Events:
        """Where it tells what happens."""

    async def status(self) -> NodeStatus:
        """The present state."""


async def get_status(node: NodeView, request: Request) -> Response:
    """Tell who this node is and how it stands."""
    status = await node.status()
    return _json(
        StatusBody(
            node_id=status.node_id,
            version=status.version,
            peers=status.peers,
            models=status.models,
            stake=mesh(status.stake),
            earnings=mesh(status.earnings),
            addresses=status.addresses,
            reachable=status.reachable,
            uptime=round(status.uptime, 3),
            sandbox=status.sandbox,
            providers=status.providers,
            workers=[
                WorkerBody(w.model_id, w.sandbox, w.provider, w.batch, w.resident, w.calls)
                for w in status.workers
            ],
            transfers=[
                TransferBody(t.model_id, t.done, t.total, round(t.rate), t.sources) for t in status.transfers
            ],
            swarm=_swarm(status.swarm),
        )
    )


def _swarm(view: SwarmView | None) -> SwarmBody | None:
    if view is None:
        return None
    return SwarmBody(
        view.id,
        view.account,
        view.issuer,
        mesh(view.balance),
        view.entries,
        view.followed,
        view.alarm,
        view.accused,
    )


async def get_health(request: Request) -> Response:
    """Answer as long as the event loop turns."""
    return _json(HealthBody("ok"))


async def get_readiness(node: NodeView, request: Request) -> Response:
    """Answer 200 once requests can be served, 503 (2003) before."""
    if not node.ready:
        raise NodeBusy("This node is still starting.", retry_after=1)
    return _json(HealthBody("ready"))


def _json(body: StatusBody | HealthBody) -> Response:
    return Response(encode(body), content_type="application/json")
