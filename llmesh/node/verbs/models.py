"""The verbs about models: this node's own, those on the mesh, and taking one away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llmesh.core.amount import Amount
from llmesh.core.reference import ModelRef
from llmesh.errors import Conflict, ModelNotFound
from llmesh.node.verbs.asked import Asked, Value, of_a_gateway
from llmesh.node.verbs.asking import ask_node, show

if TYPE_CHECKING:
    from llmesh.node.desk import Desk

__all__ = ["models", "remove", "search"]

REF = Value(ModelRef.parse, "model")
MESH = Value(Amount.parse, "mesh")
_OWN = ("model_id", "sandbox", "provider", "batch", "resident", "calls")


@click.command("models")
@of_a_gateway
def models(asked: Asked) -> None:
    """List the models that this node serves.

    `search` lists those of the whole mesh.
    """
    told = ask_node(asked, own_models)
    show({"models": told}, asked, _own_table)


@click.command("search")
@click.argument("name", default="")
@click.option("--max-fee", type=MESH, metavar="MESH", help="Leave out what costs more an inference.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most."
)
@of_a_gateway
def search(asked: Asked, name: str, max_fee: Amount | None, limit: int) -> None:
    """List the models of the mesh.

    With NAME those whose name contains it.

    \b
    Example:
      llmesh search sentiment --max-fee 0.1
    """
    query = {"name": name, "limit": str(limit)}
    if max_fee is not None:
        query["max_fee"] = str(max_fee)
    told = ask_node(asked, lambda desk: desk.get("/api/v1/models", **query))
    show(told, asked, _found_table)


@click.command("remove")
@click.argument("model", type=REF)
@of_a_gateway
def remove(asked: Asked, model: ModelRef) -> None:
    """Serve MODEL no longer and remove its copy.

    MODEL is a name, name:version, name@id or an id.
    """

    async def removed(desk: Desk) -> dict[str, Any]:
        return await desk.delete(f"/api/v1/models/{_meant(model, await own_models(desk))}")

    told = ask_node(asked, removed)
    show(told, asked, lambda gone: f"The model {gone['model_id']} is served no longer.")


async def own_models(desk: Desk) -> list[dict[str, Any]]:
    """The node's own offers, each with how its worker stands."""
    status = await desk.get("/api/v1/status")
    found = []
    for worker in status["workers"]:
        told = await desk.get(f"/api/v1/models/{worker['model_id']}")
        own = (offer for offer in told["offers"] if offer["provider"] == status["node_id"])
        found += [{**offer, "worker": {name: worker[name] for name in _OWN[1:]}} for offer in own]
    return found


def is_meant(ref: ModelRef, offer: Mapping[str, Any]) -> bool:
    """Whether a reference fits an offer."""
    if ref.id is not None and offer["model_id"] != ref.id:
        return False
    return ref.name in ("", offer["name"]) and ref.version in ("", offer["version"])


def _meant(ref: ModelRef, own: list[dict[str, Any]]) -> str:
    ids = sorted({str(offer["model_id"]) for offer in own if is_meant(ref, offer)})
    if not ids:
        raise ModelNotFound(f"This node serves no model {ref}.")
    if len(ids) > 1:
        raise Conflict(f"{ref} may be any of {', '.join(ids)}; say which by name@id.")
    return ids[0]


def _own_table(told: dict[str, Any]) -> str:
    from llmesh.node.tables import table

    rows = [(*_named(row), _memory(row["worker"]), row["worker"]["sandbox"], row["model_id"])
            for row in told["models"]]  # fmt: skip
    heads = ("name", "version", "task", "MESH", "memory", "sandbox", "model id")
    return table(heads, rows) if rows else "This node serves no models; `llmesh deploy PATH` brings one."


def _found_table(told: dict[str, Any]) -> str:
    from llmesh.node.tables import table

    rows = [(*_named(row), str(row["stake"]), row["provider"]) for row in told["models"]]
    heads = ("name", "version", "task", "MESH", "MESH staked", "provider")
    return table(heads, rows) if rows else "No such model is on offer, as far as this node knows."


def _named(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["name"], row["version"], row["task"], str(row["fee"]) if row["fee"] else "free")


def _memory(worker: dict[str, Any]) -> str:
    return f"{worker['resident'] / 1e6:.0f} MB" if worker["resident"] else "rests"
