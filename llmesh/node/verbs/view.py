"""The verbs that show what a node is and whom it sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from llmesh.node.verbs.asked import Asked, of_a_gateway
from llmesh.node.verbs.asking import ask_node, show

__all__ = ["peers", "status"]

_REACHABLE = {
    True: "yes, a peer has dialled back",
    False: "no: consumer only",
    None: "not known yet: no peer has dialled back",
}


@click.command("status")
@of_a_gateway
def status(asked: Asked) -> None:
    """Show who the node is and how it stands."""
    told = ask_node(asked, lambda desk: desk.get("/api/v1/status"))
    show(told, asked, _status)


@click.command("peers")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most."
)
@of_a_gateway
def peers(asked: Asked, limit: int) -> None:
    """List the other nodes that this one knows.

    Those that it is connected to come first.
    """
    told = ask_node(asked, lambda desk: desk.get("/api/v1/peers", limit=str(limit)))
    show(told, asked, _peers)


def _status(told: dict[str, Any]) -> str:
    from llmesh.node.tables import facts

    return facts(_facts(told))


def _facts(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "node id", told["node_id"]
    yield "version", told["version"]
    yield "running for", lasting(told["uptime"])
    for index, address in enumerate(told["addresses"]):
        yield "" if index else "addresses", f"{address}/p2p/{told['node_id']}"
    yield "reachable", _REACHABLE[told["reachable"]]
    yield "peers", f"{told['peers']} connected"
    yield "models", f"{told['models']} served here"
    yield "sandbox", told["sandbox"] or "not known yet"
    yield "runs on", ", ".join(told["providers"]) or "not known yet"
    for transfer in told["transfers"]:
        yield "fetching", _transfer(transfer)
    yield from _money(told)


def _transfer(told: dict[str, Any]) -> str:
    done, total, rate = (told[name] / 1e6 for name in ("done", "total", "rate"))
    sources = len(told["sources"])
    return f"{told['model_id'][:12]}: {done:.1f} of {total:.1f} MB, {rate:.1f} MB/s from {sources}"


def _money(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "stake", f"{told['stake']} MESH"
    yield "earned", f"{told['earnings']} MESH"
    swarm = told["swarm"]
    if swarm is None:
        return
    yield "balance", f"{swarm['balance']} MESH"
    followed = f"a member; it has the ledger from {swarm['followed']} of its peers now"
    part = "the issuer" if swarm["issuer"] else followed
    yield "swarm", f"{swarm['id'][:16]}, {part}"
    if swarm["alarm"]:
        yield "ALARM", swarm["alarm"]
    if swarm["accused"]:
        yield "caught cheating", f"{swarm['accused']} of the providers it has paid; `wallet` shows them"


def lasting(seconds: float) -> str:
    """A length of time for a person: its two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _peers(told: dict[str, Any]) -> str:
    from llmesh.node.tables import table

    if not told["peers"]:
        return (
            "No other node is known yet. Join one by `llmesh start --join INVITE` or --bootstrap ADDRESS;"
            " on one local network nodes meet by themselves."
        )
    heads = ("peer", "state", "latency", "models", "MESH staked", "address")
    return table(heads, [_peer(row) for row in told["peers"]])


def _peer(row: dict[str, Any]) -> tuple[str, ...]:
    latency = "" if row["latency_ms"] is None else f"{float(row['latency_ms']):.1f} ms"
    first = row["addresses"][0] if row["addresses"] else ""
    return (row["peer_id"], row["state"], latency, str(row["models"]), str(row["stake"]), first)
