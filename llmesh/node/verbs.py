"""What the command line does besides starting a node: each verb asks the node, or its files.

Exit codes: 0 it is done; 1 it was refused, with the reason and its code on standard error; 2 it could
not be asked: a bad option, no node, a data directory that cannot be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmesh.node import values
from llmesh.node.asking import ask, die_by_signals, folder_of, of_a_node, show
from llmesh.node.ledgers import invite, ledger
from llmesh.node.wallet import explain, wallet

__all__ = ["VERBS"]

_SAVED = """\
Keep it where others cannot read it: whoever has it is this node. Without it, a lost disk costs
  identity.key  the node's name: peers that know it, and its standing with them
  account.key   its money: nobody can move the balance, the stake or the deposits any more
  journal.db    what peers owe for work not yet claimed, all receipts, the keys and their budgets
  ledger.db     the swarm's books, which other members have too, if there are any
An old journal.db forgets what came after it; make backups often, and after each new key."""


@click.group("keys", no_args_is_help=False)
def keys() -> None:
    """Keys for programs that use this node's gateway."""


@keys.command("create")
@click.option("--name", required=True, metavar="NAME", help="What the key is for, such as laptop.")
@click.option(
    "--budget",
    default="0",
    metavar="MESH",
    help="MESH that it may spend a day (UTC), or unlimited.  [default: 0, free models only]",
)
@click.option(
    "--scopes",
    default="inference",
    metavar="LIST",
    help="What it may do besides reading: inference, deploy, webhooks.  [default: inference]",
)
@click.option("--expires", metavar="TIME", help="When it ends, such as 12h or 30d.  [default: never]")
@of_a_node
@click.pass_context
def create_key(
    context: click.Context,
    name: str,
    budget: str,
    scopes: str,
    expires: str | None,
    as_json: bool,
    data_dir: str | None,
) -> None:
    """Make a key, and show it this once."""
    body = {
        "name": name,
        "budget": None if budget == "unlimited" else budget,
        "scopes": [word.strip() for word in scopes.split(",") if word.strip()],
        "lifetime": None if expires is None else values.duration(expires),
    }
    told = ask(folder_of(context, data_dir), lambda desk: desk.post("/owner/keys", body))
    show(told, as_json, _new_key)


@keys.command("list")
@of_a_node
@click.pass_context
def list_keys(context: click.Context, as_json: bool, data_dir: str | None) -> None:
    """Show all keys, and what is left of their budgets."""
    told = ask(folder_of(context, data_dir), lambda desk: desk.get("/owner/keys"))
    show(told, as_json, _key_table)


@keys.command("revoke")
@click.argument("key", metavar="ID_OR_NAME")
@of_a_node
@click.pass_context
def revoke_key(context: click.Context, key: str, as_json: bool, data_dir: str | None) -> None:
    """Make a key good for nothing from now on."""
    told = ask(folder_of(context, data_dir), lambda desk: desk.post("/owner/keys/revoke", {"key": key}))
    show(told, as_json, lambda row: f"The key {row['id']} ({row['name']}) is revoked.")


@click.command("backup")
@click.argument("path", type=click.Path(path_type=Path))
@of_a_node
@click.pass_context
def backup(context: click.Context, path: Path, as_json: bool, data_dir: str | None) -> None:
    """Write the node's keys, journal and ledger into the folder PATH, also while it runs."""
    body = {"path": str(path.expanduser().absolute())}
    told = ask(folder_of(context, data_dir), lambda desk: desk.post("/owner/backup", body))
    show(told, as_json, lambda saved: f"{saved['path']} holds {', '.join(saved['files'])}.\n{_SAVED}")


@click.command("restore")
@click.argument("path", type=click.Path(path_type=Path))
@of_a_node
@click.pass_context
def restore(context: click.Context, path: Path, as_json: bool, data_dir: str | None) -> None:
    """Put the backup in the folder PATH into a data directory that no node holds."""
    from llmesh.node.backup import restore as put_back

    folder = folder_of(context, data_dir)
    die_by_signals()
    owner, kept = put_back(path.expanduser(), folder)
    told = {"node_id": owner, "path": str(folder), "replaced": None if kept is None else str(kept)}
    show(told, as_json, _restored)


def _restored(told: dict[str, Any]) -> str:
    lines = [f"{told['path']} is node {told['node_id']} again."]
    if told["replaced"]:
        lines.append(f"The journal that was there is kept as {told['replaced']}.")
    lines.append("Never run two copies of one node: both would spend the same money.")
    return "\n".join(lines)


def _new_key(told: dict[str, Any]) -> str:
    budget = "no budget limit" if told.get("budget") is None else f"{told['budget']} MESH a day"
    ends = f"until {told['expires']}" if told.get("expires") else "until it is revoked"
    may = ", ".join(told["scopes"])
    return (
        f"{told['key']}\n\nKey {told['id']} ({told['name']}): {may}; {budget}; {ends}.\n"
        "It is shown this once. Programs send it as: Authorization: Bearer KEY"
    )


def _key_table(told: dict[str, Any]) -> str:
    from llmesh.node.tables import table

    rows = [
        (
            row["id"], row["name"], _state(row), ", ".join(row["scopes"]),
            "no limit" if row.get("budget") is None else f"{row['left']} of {row['budget']}",
        )
        for row in told["keys"]
    ]  # fmt: skip
    return table(("id", "name", "state", "scopes", "MESH left today"), rows) if rows else "There are no keys."


def _state(row: dict[str, Any]) -> str:
    if row.get("revoked"):
        return f"revoked {row['revoked']}"
    if not row["in_force"]:
        return f"expired {row['expires']}"
    return f"until {row['expires']}" if row.get("expires") else "in force"


VERBS: tuple[click.Command, ...] = (keys, wallet, explain, invite, ledger, backup, restore)
"""The subcommands of `python -m llmesh.node`."""
