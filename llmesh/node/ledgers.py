"""The verbs about the swarm: inviting to it, and checking its ledger."""

from __future__ import annotations

from typing import Any

import click

from llmesh.node import values
from llmesh.node.asking import ask, folder_of, of_a_node, show
from llmesh.node.faults import StartRefused

__all__ = ["invite", "ledger"]


@click.command("invite")
@click.option(
    "--credit",
    default="0",
    metavar="MESH",
    help="MESH for whoever joins by it, from the issuer's balance.  [default: 0]",
)
@click.option("--expires", default="7d", metavar="TIME", help="When it ends, such as 12h.  [default: 7d]")
@of_a_node
@click.pass_context
def invite(context: click.Context, credit: str, expires: str, as_json: bool, data_dir: str | None) -> None:
    """Print one line by which another machine joins this node's swarm: treat it like money."""
    body = {"credit": credit, "lifetime": values.duration(expires)}
    told = ask(folder_of(context, data_dir), lambda desk: desk.post("/owner/invite", body))
    show(told, as_json, lambda made: str(made["invite"]))


@click.group("ledger", no_args_is_help=False)
def ledger() -> None:
    """The ledger of this node's swarm, as this node keeps it."""


@ledger.command("verify")
@of_a_node
@click.pass_context
def verify(context: click.Context, as_json: bool, data_dir: str | None) -> None:
    """Rebuild all balances from the signed log and compare them, also while the node runs."""
    from llmesh.ledger.local import verify_ledger
    from llmesh.node.home import LEDGER

    path = folder_of(context, data_dir) / LEDGER
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
    show(told, as_json, _verified)


def _verified(told: dict[str, Any]) -> str:
    return (
        f"The ledger of swarm {told['swarm'][:16]} is whole: {told['entries']} entries, {told['accounts']}"
        f" accounts, {told['channels']} channels.\nIts head is {told['head']}; where another member has"
        " another one with as many entries, somebody is being deceived."
    )
