"""The verb that looks for what is not well here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llmesh.errors import MeshError, NodeUnreachable
from llmesh.node.faults import StartRefused
from llmesh.node.verbs.asked import Asked, of_a_node
from llmesh.node.verbs.asking import carry_out, show

if TYPE_CHECKING:
    from llmesh.node.checks import Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@of_a_node
def doctor(asked: Asked) -> None:
    """Look for what is not well here, and say what to do.

    It looks at Python and its packages, the data directory, disk, keys, journal, ledger and clock, and
    at the node if it runs; else at its ports and at what may run models.  Nothing is changed.  The exit
    code is 1 if a line says fail.
    """
    found = [*_at_rest(asked), *carry_out(lambda: _alive(asked))]
    told = {"findings": [asdict(each) for each in found]}
    show(told, asked, lambda whole: "\n".join(map(_line, whole["findings"])))
    if any(each.level == "fail" for each in found):
        sys.exit(1)


def _at_rest(asked: Asked) -> Iterator[Finding]:
    from llmesh.node.checks import machine
    from llmesh.node.checks.files import disk, files

    yield machine.python()
    yield machine.packages()
    yield machine.prerequisites()
    yield disk(asked.folder)
    yield from files(asked.folder)


async def _alive(asked: Asked) -> list[Finding]:
    from llmesh.node.checks import Finding, machine
    from llmesh.node.checks.life import gateway, life

    try:
        async with asked.desk() as desk:
            told = await desk.get("/api/v1/status")
        return [*life(asked.config, told), await gateway(asked.folder)]
    except (NodeUnreachable, StartRefused):
        rest = Finding("warn", "node", "does not run", "Start it: llmesh start.")
        return [rest, *machine.ports(asked.config), *await machine.workers(asked.config)]
    except MeshError as error:
        return [Finding("fail", "node", error.message, "See its log, and start it again.")]


def _line(row: dict[str, Any]) -> str:
    level = click.style(f"{row['level']:<4}", fg=_COLOURS[row["level"]])
    return f"{level}  {row['subject']:<14}  {row['text']}{'. ' if row['next_step'] else ''}{row['next_step']}"
