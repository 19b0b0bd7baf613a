"""The verbs that bring a model to a node: from a disk, or from the mesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmesh.core.amount import Amount
from llmesh.core.reference import ModelRef, model_name, model_version
from llmesh.node.values import name_of
from llmesh.node.verbs.asked import Asked, Value, of_a_gateway, of_a_node
from llmesh.node.verbs.asking import ask_node, carry_out, show
from llmesh.node.verbs.models import MESH, REF, is_meant

if TYPE_CHECKING:
    from llmesh.node.desk import Desk

__all__ = ["deploy", "fetch"]

PATIENCE = 3600.0
"""Seconds that a deployment may take."""
A_DAY = 86_400.0
LOOK = 0.5
"""Seconds between two looks at how far a fetch is."""


@click.command("deploy")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--name",
    type=Value(model_name, "name"),
    metavar="NAME",
    help="What callers name it by.  [default: the name of the folder or file]",
)
@click.option(
    "--fee", type=MESH, default="0", metavar="MESH", help="What one inference costs.  [default: 0, free]"
)
@click.option(
    "--version",
    type=Value(model_version, "version"),
    default="1.0.0",
    show_default=True,
    metavar="VERSION",
    help="Its version.",
)
@click.option("--description", default="", metavar="TEXT", help="One sentence about it.")
@of_a_gateway
def deploy(asked: Asked, path: Path, name: str | None, fee: Amount, version: str, description: str) -> None:
    """Serve the model at PATH from now on.

    It is a folder, an .onnx file, or a .zip or .tar of a folder.  The node keeps a copy of
    its own, looks it over and announces it.  A node elsewhere (--url) is sent the files.

    \b
    Example:
      llmesh deploy ./my-model --name my-model --fee 0.1
    """
    said = {"name": name or name_of(path), "fee": str(fee), "version": version, "description": description}
    if asked.gateway:
        told = carry_out(lambda: _upload(asked, path, said))
    else:
        told = carry_out(lambda: _by_path(asked, path.resolve(), said))
    show(told, asked, lambda row: f"{row['name']}:{row['version']} is served now (model {row['model_id']}).")


@click.command("fetch")
@click.argument("model", type=REF)
@click.option("--replicate", is_flag=True, help="Serve it here too, under the same name.")
@click.option(
    "--fee", type=MESH, metavar="MESH", help="What one inference costs here.  [default: as where it is found]"
)
@of_a_node
def fetch(asked: Asked, model: ModelRef, replicate: bool, fee: Amount | None) -> None:
    """Bring MODEL here from the peers that have it.

    Every block is verified.  What was cut off goes on where it ended when it is asked for again.

    \b
    Example:
      llmesh fetch gpt-mini --replicate
    """
    if fee is not None and not replicate:
        raise click.UsageError("--fee is for a model that is served here too; add --replicate.")
    body = {"model": str(model), "replicate": replicate, "fee": None if fee is None else str(fee)}
    told = ask_node(asked, lambda desk: _fetched(desk, model, body))
    where = "is here, verified, and served from now on" if replicate else "is in this node's store, verified"
    show(told, asked, lambda row: f"{model} {where} (model {row['model_id']}).")


async def _by_path(asked: Asked, path: Path, said: dict[str, str]) -> dict[str, Any]:
    from llmesh.node.progress import busy

    async with asked.desk() as desk:
        with busy(f"{said['name']}: copying, checking and loading"):
            return await desk.post("/api/v1/models", {**said, "path": str(path)}, PATIENCE)


async def _upload(asked: Asked, path: Path, said: dict[str, str]) -> dict[str, Any]:
    from llmesh.node.progress import sending

    async with asked.client() as client:
        with sending(said["name"]) as report:
            id = await client.deploy_model(path, said, report, PATIENCE)
    return {"model_id": id, "name": said["name"], "version": said["version"]}


async def _fetched(desk: Desk, ref: ModelRef, body: dict[str, Any]) -> dict[str, Any]:
    import trio

    from llmesh.node.progress import shown

    found = await desk.get("/api/v1/models", name=ref.name, limit="1000")
    ids = {offer["model_id"] for offer in found["models"] if is_meant(ref, offer)}
    with shown(str(ref)) as report:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, desk, ids, report)
            told = await desk.post("/owner/fetch", body, A_DAY)
            nursery.cancel_scope.cancel()
    return told


async def _watch(desk: Desk, ids: set[str], report: Callable[[int, int, int], None]) -> None:
    import trio

    while True:
        status = await desk.get("/api/v1/status")
        for transfer in status["transfers"]:
            if transfer["model_id"] in ids:
                report(transfer["done"], transfer["total"], len(transfer["sources"]))
        await trio.sleep(LOOK)
