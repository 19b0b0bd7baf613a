"""The node itself, as it tells of itself in its status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmesh.errors import MeshError
from llmesh.node.checks.finding import Finding
from llmesh.node.checks.machine import providers, sandbox
from llmesh.node.config import NodeConfig
from llmesh.node.desk import desk_at

__all__ = ["gateway", "life"]

_OPEN = "Open its port in the firewall and router, or give an address that reaches it with --announce."
_MEET = "Join a swarm by llmesh start --join INVITE, or name a node with --bootstrap."


def life(config: NodeConfig, status: Mapping[str, Any]) -> Iterator[Finding]:
    """How a running node stands; `status` is what GET /api/v1/status says."""
    yield Finding("ok", "node", f"runs, version {status['version']}, {status['models']} models")
    yield sandbox(status["sandbox"])
    if status["providers"]:
        yield providers(config, tuple(status["providers"]))
    yield _peers(status["peers"])
    yield _reachable(status["reachable"])
    if status["swarm"] is not None:
        yield _swarm(status["swarm"])


async def gateway(folder: Path) -> Finding:
    """Whether programs reach the gateway of the node that runs there."""
    try:
        url = str(json.loads((folder / "node.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return Finding("warn", "gateway", "not there yet: the node is just starting or stopping")
    try:
        async with desk_at(url) as desk:
            await desk.get("/healthz")
    except MeshError as error:
        return Finding("fail", "gateway", error.message, "See the node's log, and start it again.")
    return Finding("ok", "gateway", f"{url} answers")


def _peers(count: int) -> Finding:
    if not count:
        return Finding("warn", "peers", "no other node is connected", _MEET)
    return Finding("ok", "peers", f"{count} connected")


def _reachable(reachable: bool | None) -> Finding:
    if reachable:
        return Finding("ok", "reachable", "other nodes can dial this one")
    if reachable is None:
        return Finding("ok", "reachable", "not known yet: no peer has been there to dial back")
    return Finding("warn", "reachable", "no peer could dial back: consumer only", _OPEN)


def _swarm(swarm: Mapping[str, Any]) -> Finding:
    name = swarm["id"][:16]
    if swarm["alarm"]:
        return Finding(
            "fail", "swarm", f"{name}: {swarm['alarm']}",
            "Trust no balance of it; ask the other members before you go on.",
        )  # fmt: skip
    if swarm["issuer"]:
        return Finding("ok", "swarm", f"{name}: this node is its issuer; {swarm['balance']} MESH")
    if not swarm["followed"]:
        return Finding(
            "warn", "swarm", f"{name}: neither the issuer nor a member gives the ledger now",
            "Deposits, claims and bonds wait until one is back; open channels keep working.",
        )  # fmt: skip
    return Finding(
        "ok", "swarm", f"{name}: {swarm['followed']} members give the ledger; {swarm['balance']} MESH"
    )
