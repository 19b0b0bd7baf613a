"""`python -m llmesh.node`: flags by click, one per field of NodeConfig; with a verb no node is started."""

from __future__ import annotations

import os
import sys
from dataclasses import MISSING, fields

import click

from llmesh import __version__
from llmesh.errors import MeshError
from llmesh.node.config import OPTIONS, NodeConfig, Option
from llmesh.node.faults import StartRefused
from llmesh.node.sources import configure, variable
from llmesh.node.verbs import VERBS

__all__ = ["command", "main"]

_DEFAULTS = {f.name: f.default for f in fields(NodeConfig)}


def command(arguments: list[str] | None = None) -> None:
    """Run the command line, by default with the process's own arguments.

    A fault is one line and exit code 2; what a node refuses to do for a verb is one line and 1.
    """
    try:
        main.main(arguments, "python -m llmesh.node", standalone_mode=False)
    except click.ClickException as fault:
        _refuse(f"{fault.format_message()} (--help shows all options)")
    except StartRefused as fault:
        _refuse(str(fault))
    except MeshError as fault:
        _refuse(f"[{fault.code} {fault.name}] {fault.message} {fault.next_step}", 1)


def _flag(name: str, option: Option) -> click.Option:
    default = _DEFAULTS[name]
    shown = option.shown or ("" if default is MISSING else str(default))
    source = f"  [env: {variable(name)}; default: {shown}]"
    if isinstance(default, bool):
        both = f"--{_spelled(name)}/--no-{_spelled(name)}"
        return click.Option([both, name], default=None, help=option.help + source)
    return click.Option(
        ["--" + _spelled(name), name],
        metavar=option.metavar,
        multiple=option.repeated,
        help=option.help + source,
    )


def _spelled(name: str) -> str:
    return name.replace("_", "-")


@click.pass_context
def _start(context: click.Context, /, config: str | None, **flags: object) -> None:
    if context.invoked_subcommand is not None:
        return
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        settings = configure(given, os.environ, config, lambda name: "--" + _spelled(name))
        from llmesh.node.run import run_node  # takes a second, which help and bad options need not wait

        run_node(settings)
    except MeshError as fault:
        raise StartRefused(f"{fault.message} {fault.next_step}") from fault


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(__version__)
        context.exit()


def _refuse(line: str, code: int = 2) -> None:
    click.echo(f"llmesh: {line}", err=True)
    sys.exit(code)


main = click.Group(
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
    " model of the mesh to programs on this machine.  With a command, ask or change a node instead.",
    invoke_without_command=True,
    commands=VERBS,
    context_settings={"max_content_width": 110},
)
