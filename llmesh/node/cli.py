"""`python -m llmesh.node`: flags by click, one per field of NodeConfig."""

from __future__ import annotations

import os
import sys
from dataclasses import MISSING, fields

import click

from llmesh import __version__
from llmesh.errors import MeshError
from llmesh.node.config import OPTIONS, NodeConfig, Option
from llmesh.node.faults import StartRefused
from llmesh.node.run import run_node
from llmesh.node.sources import configure, variable

__all__ = ["main"]

_NEGATED = {"mdns": "--no-mdns"}
_DEFAULTS = {f.name: f.default for f in fields(NodeConfig)}


def _flag(name: str, option: Option) -> click.Option:
    default = _DEFAULTS[name]
    shown = option.shown or ("" if default is MISSING else str(default))
    is_flag = isinstance(default, bool)
    return click.Option(
        [_NEGATED.get(name, "--" + name.replace("_", "-")), name],
        help=f"{option.help}  [env: {variable(name)}; default: {shown}]",
        metavar=None if is_flag else option.metavar,
        multiple=option.repeated,
        is_flag=is_flag,
        flag_value=name not in _NEGATED if is_flag else None,
        default=None,
        type=bool if is_flag else str,
    )


def _start(config: str | None, **flags: object) -> None:
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        run_node(configure(given, os.environ, config))
    except StartRefused as fault:
        _refuse(str(fault))
    except MeshError as fault:
        _refuse(fault.message)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(__version__)
        context.exit()


def _refuse(line: str) -> None:
    click.echo(f"llmesh: {line}", err=True)
    sys.exit(2)


main = click.Command(
    "llmesh.node",
    callback=_start,
    params=[
        *(_flag(name, option) for name, option in OPTIONS.items()),
        click.Option(
            ["--config"],
            metavar="FILE",
            help="TOML file with the same options, such as port = 8080 or deploy = [...];"
            " flags win over the environment, the environment over the file.  [env: LLMESH_CONFIG]",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ],
    help="Start a node of the LLMESH inference mesh: it serves its models to other nodes, and every"
    " model of the mesh to programs on this machine.",
    context_settings={"max_content_width": 110},
)
