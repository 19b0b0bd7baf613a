"""The verbs about keys for programs that use this node's gateway."""

from __future__ import annotations

from typing import Any

import click

from llmesh.node import values
from llmesh.node.verbs.asked import Asked, Value, of_a_node
from llmesh.node.verbs.asking import ask, show

__all__ = ["keys"]


@click.group("keys", no_args_is_help=False)
def keys() -> None:
    """Make, list and revoke keys for programs."""


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
    help="What it may do besides reading: inference, deploy, webhooks, wallet.  [default: inference]",
)
@click.option(
    "--expires",
    type=Value(values.duration, "time"),
    metavar="TIME",
    help="When it ends, such as 12h or 30d.  [default: never]",
)
@of_a_node
def create_key(asked: Asked, name: str, budget: str, scopes: str, expires: float | None) -> None:
    """Make a key, and show it this once.

    \b
    Example:
      llmesh keys create --name laptop --budget 5 --expires 30d
    """
    body = {
        "name": name,
        "budget": None if budget == "unlimited" else budget,
        "scopes": [word.strip() for word in scopes.split(",") if word.strip()],
        "lifetime": expires,
    }
    told = ask(asked, lambda desk: desk.post("/owner/keys", body))
    show(told, asked, _new_key)


@keys.command("list")
@of_a_node
def list_keys(asked: Asked) -> None:
    """Show all keys, and what is left of their budgets."""
    told = ask(asked, lambda desk: desk.get("/owner/keys"))
    show(told, asked, _key_table)


@keys.command("revoke")
@click.argument("key", metavar="ID_OR_NAME")
@of_a_node
def revoke_key(asked: Asked, key: str) -> None:
    """Make a key good for nothing from now on."""
    told = ask(asked, lambda desk: desk.post("/owner/keys/revoke", {"key": key}))
    show(told, asked, lambda row: f"The key {row['id']} ({row['name']}) is revoked.")


def _new_key(told: dict[str, Any]) -> str:
    budget = "no budget limit" if told.get("budget") is None else f"{told['budget']} MESH a day"
    ends = f"until {told['expires']}" if told.get("expires") else "until it is revoked"
    may = ", ".join(told["scopes"])
    return (
        f"{told['key']}\n\nKey {told['id']} ({told['name']}): {may}; {budget}; {ends}.\n"
        "It is shown this once. Programs send it as: Authorization: Bearer KEY\n"
        "Until all keys are revoked, the gateway asks every program for one."
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
