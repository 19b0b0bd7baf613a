"""`llmesh` and `python -m llmesh.node`: flags by click, one per field of NodeConfig, and the verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import NoReturn

import click

from llmesh import __version__
from llmesh.errors import MeshError, NodeUnreachable
from llmesh.node.config import OPTIONS, NodeConfig, Option
from llmesh.node.faults import StartRefused
from llmesh.node.sources import configure, strangers, variable
from llmesh.node.verbs import VERBS

__all__ = ["command", "main"]

_DEFAULTS = {f.name: f.default for f in fields(NodeConfig)}
_HELP = """\
LLMESH, an open inference mesh: a node serves its models to other nodes, and every model of the mesh
to programs on this machine.  Without a command it starts a node.

\b
Begin with:
  llmesh start --demo                        a node with two small models
  llmesh run gpt-mini "给我讲个故事"           from another terminal
  llmesh search                              what the mesh has
  llmesh doctor                              what is not well here

Commands ask the node that runs on this machine; --help after a command explains it."""

_START_HELP = """\
Start a node, which runs until Ctrl-C.

\b
Examples:
  llmesh start --demo
  llmesh start --deploy ./my-model,name=my-model,fee=0.1
  llmesh start --join llmesh1-... --stake 1000"""


def command(arguments: list[str] | None = None, name: str = "python -m llmesh.node") -> None:
    """Run the command line, by default with the process's own arguments.

    A fault is one line and exit code 2; what a node refuses to do for a verb is one line and 1.
    """
    try:
        main.main(arguments, name, standalone_mode=False)
    except click.ClickException as fault:
        _refuse(f"{fault.format_message()} (--help shows all options)")
    except StartRefused as fault:
        _refuse(str(fault))
    except MeshError as fault:
        if isinstance(fault, NodeUnreachable) and not fault.remote:
            _refuse(fault.message)  # nobody was there to be asked
        _refuse(f"[{fault.code} {fault.name}] {fault.message} {fault.next_step}", 1)
    except BrokenPipeError:  # whoever read has read enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _Commands(click.Group):
    """Lists the commands first, in their own order: there are many options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)


def _options() -> Iterator[click.Parameter]:
    """What a node can be started with."""
    yield from (_flag(name, option) for name, option in OPTIONS.items())
    yield click.Option(
        ["--config"],
        metavar="FILE",
        help="TOML file with the same options, such as port = 8080 or deploy = [...];"
        " flags win over the environment, the environment over the file.  [env: LLMESH_CONFIG]",
    )


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
def _start_alone(context: click.Context, /, **flags: object) -> None:
    if context.invoked_subcommand is None:
        _start(flags)


@click.pass_context
def _start_verb(context: click.Context, /, **flags: object) -> None:
    _start(_given(context.find_root().params) | _given(flags))


def _start(flags: dict[str, object]) -> None:
    given = _given(flags)
    config = given.pop("config", None)
    for sentence in strangers(os.environ):
        click.echo(f"llmesh: {sentence}", err=True)
    try:
        settings = configure(
            given, os.environ, None if config is None else str(config), lambda name: "--" + _spelled(name)
        )
        from llmesh.node.run import run_node  # takes a second, which help and bad options need not wait

        run_node(settings)
    except MeshError as fault:
        raise StartRefused(f"{fault.message} {fault.next_step}") from fault


def _given(flags: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(__version__)
        context.exit()


def _refuse(line: str, code: int = 2) -> NoReturn:
    click.echo(f"llmesh: {line}", err=True)
    sys.exit(code)


_STARTING = click.Command(
    "start",
    callback=_start_verb,
    params=list(_options()),
    help=_START_HELP,
)

main = _Commands(
    "llmesh",
    callback=_start_alone,
    params=[
        *_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ],
    help=_HELP,
    invoke_without_command=True,
    commands={each.name: each for each in (_STARTING, *VERBS) if each.name},
    context_settings={"max_content_width": 110},
)
