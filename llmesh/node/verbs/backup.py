"""The verbs about backups of what a node cannot do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmesh.node.verbs.asked import Asked, of_a_node
from llmesh.node.verbs.asking import ask, die_by_signals, show

__all__ = ["backup", "restore"]

_SAVED = """\
Keep it where others cannot read it: whoever has it is this node. Without it, a lost disk costs
  identity.key  the node's name: peers that know it, and its standing with them
  account.key   its money: nobody can move the balance, the stake or the deposits any more
  journal.db    what peers owe for work not yet claimed, all receipts, the keys and their budgets
  ledger.db     the swarm's books, which other members have too, if there are any
An old journal.db forgets what came after it; make backups often, and after each new key.
Put it back by `llmesh restore` only, which keeps the node from signing twice for what it forgot."""


@click.command("backup")
@click.argument("path", type=click.Path(path_type=Path))
@of_a_node
def backup(asked: Asked, path: Path) -> None:
    """Write a backup into the folder PATH.

    It holds the node's keys, journal and ledger; the node may run meanwhile.  What is
    written is as secret as the node itself.
    """
    body = {"path": str(path.expanduser().absolute())}
    told = ask(asked, lambda desk: desk.post("/owner/backup", body))
    show(told, asked, lambda saved: f"{saved['path']} holds {', '.join(saved['files'])}.\n{_SAVED}")


@click.command("restore")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--latest-ledger", is_flag=True, help="No member of this issuer's swarm has more of its ledger."
)
@of_a_node
def restore(asked: Asked, path: Path, latest_ledger: bool) -> None:
    """Put a backup back.

    It lies in the folder PATH, and no node may hold the data directory.
    """
    from llmesh.node.backup import restore as put_back

    folder = asked.folder
    die_by_signals()
    owner, kept = put_back(path.expanduser(), folder, latest=latest_ledger)
    told = {"node_id": owner, "path": str(folder), "replaced": None if kept is None else str(kept)}
    show(told, asked, _restored)


def _restored(told: dict[str, Any]) -> str:
    lines = [f"{told['path']} is node {told['node_id']} again."]
    if told["replaced"]:
        lines.append(f"The journal that was there is kept as {told['replaced']}.")
    lines.append("Those who pay it open new channels by themselves, and remind it of what they owe.")
    lines.append("Never run two copies of one node: both would spend the same money.")
    return "\n".join(lines)
