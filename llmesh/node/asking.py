"""How a verb of the command line asks: of the running node, or of its files if none runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llmesh.node.sources import configure

if TYPE_CHECKING:
    from llmesh.node.desk import Desk

__all__ = ["ask", "die_by_signals", "folder_of", "of_a_node", "show"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


def of_a_node(verb: F) -> F:
    """The options that every verb has."""
    shown = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    where = click.option(
        "--data-dir", metavar="FOLDER", help="Folder of the node, if it was started with one."
    )
    return where(shown(verb))


def folder_of(context: click.Context, data_dir: str | None) -> Path:
    """The data directory that is meant, by the same rules as at a start."""
    given = dict(context.find_root().params)
    config = given.pop("config", None)
    if data_dir is not None:
        given["data_dir"] = data_dir
    found = {name: value for name, value in given.items() if value not in (None, ())}
    return configure(found, os.environ, config, lambda name: "--" + name.replace("_", "-")).data_dir


def ask(folder: Path, question: Callable[[Desk], Awaitable[T]]) -> T:
    """What the desk of a node answers to a question."""
    import trio

    from llmesh.node.desk import open_desk
    from llmesh.node.faults import lone_errors

    async def asked() -> T:
        async with open_desk(folder) as desk:
            return await question(desk)

    die_by_signals()
    with lone_errors():
        return trio.run(asked)


def die_by_signals() -> None:
    """A verb that is interrupted has not done its work, and says so by how it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def show(told: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], str]) -> None:
    """Print an answer, for a program or for a person."""
    click.echo(json.dumps(told, indent=2, ensure_ascii=False, default=float) if as_json else render(told))
