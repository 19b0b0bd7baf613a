"""The verbs about the swarm: inviting to it, and checking its ledger."""

from __future__ import annotations

from typing import Any

import click

from llmesh.node import values
from llmesh.node.faults import StartRefused
from llmesh.node.verbs.asked import Asked, Value, of_a_node
from llmesh.node.verbs.asking import ask_node, die_by_signals, show

__all__ = ["invite", "ledger"]


@click.command("invite")
@click.option(
    "--credit",
    default="0",
    metavar="MESH",
    help="MESH for whoever joins by it, from the issuer's balance.  [default: 0]",
)
@click.option(
    "--expires",
    type=Value(values.duration, "time"),
    default="7d",
    metavar="TIME",
    help="When it ends, such as 12h.  [default: 7d]",
)
@of_a_node
def invite(asked: Asked, credit: str, expires: float) -> None:
    """Print a line by which a machine joins this swarm.

    Treat it like money: whoever joins by it first takes its credit.

    \b
    Example, and what to do with its line on the other machine:
      llmesh invite --credit 5000
      llmesh start --join llmesh1-...
    """
    body = {"credit": credit, "lifetime": expires}
    told = ask_node(asked, lambda desk: desk.post("/owner/invite", body))
    show(told, asked, lambda made: str(made["invite"]))


@click.group("ledger", no_args_is_help=False)
def ledger() -> None:
    """Check the ledger of this node's swarm."""


@ledger.command("verify")
@of_a_node
def verify(asked: Asked) -> None:
    """Rebuild all balances from the log and compare them.

    Every signature is checked.  The node may run meanwhile.
    """
    from llmesh.ledger.local import verify_ledger
    from llmesh.node.home import LEDGER

    die_by_signals()
    path = asked.folder / LEDGER
    if not path.exists():
        raise StartRefused(f"There is no ledger {path}; start the node once, or say where with --data-dir.")
    found = verify_ledger(path)
    told = {
        "swarm": found.genesis.hash.hex(),
        "entries": found.head.sequence,
        "head": found.head.hash.hex(),
        "accounts": found.accounts,
        "channels": found.channels,
    }
    show(told, asked, _verified)


def _verified(told: dict[str, Any]) -> str:
    return (
        f"The ledger of swarm {told['swarm'][:16]} is whole. Entries: {told['entries']}, accounts:"
        f" {told['accounts']}, channels: {told['channels']}.\nIts head is {told['head']}; where another"
        " member has another one with as many entries, somebody is being deceived."
    )
