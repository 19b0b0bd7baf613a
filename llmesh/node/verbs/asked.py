"""Which node a verb of the command line is for, by the options that all verbs share."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from llmesh.errors import MeshError, Unauthorized
from llmesh.node.config import NodeConfig, data_dir_option
from llmesh.node.sources import configure

if TYPE_CHECKING:
    from llmesh_sdk import MeshClient

    from llmesh.node.desk import Desk

__all__ = ["Asked", "Value", "of_a_gateway", "of_a_node"]

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which node is meant, and how its answer is to be shown.

    `root` are the options before the verb; `url` is None for a verb of the owner, empty where a verb
    that any gateway answers was given none.
    """

    root: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    url: str | None = None
    key: str | None = None
    as_json: bool = False

    @property
    def folder(self) -> Path:
        """The data directory that is meant."""
        return self.config.data_dir

    @property
    def config(self) -> NodeConfig:
        """What a node would be started with, by the same rules."""
        given = dict(self.root)
        config = given.pop("config", None)
        if self.data_dir is not None:
            given["data_dir"] = self.data_dir
        found = {name: value for name, value in given.items() if value not in (None, ())}
        return configure(found, os.environ, config, lambda name: "--" + name.replace("_", "-"))

    @property
    def gateway(self) -> str | None:
        """The URL that is meant: LLMESH_URL where neither that nor a data directory was named."""
        if self.url is None:
            return None  # an owner's verb
        here = self.data_dir or self.root.get("data_dir")
        if self.url and here:
            raise click.UsageError("--url is another way to a node than --data-dir; give one of them.")
        url = self.url or ("" if here else os.environ.get("LLMESH_URL", ""))
        if url and not url.startswith(("http://", "https://")):
            raise click.UsageError(f"{url!r} is not the URL of a gateway, such as http://localhost:8080.")
        return url or None

    @property
    def again(self) -> str:
        """What another command needs, with a space before it, to mean the same node."""
        return f" --url {shlex.quote(self.gateway)}" if self.gateway else data_dir_option(self.folder)

    @asynccontextmanager
    async def desk(self) -> AsyncIterator[Desk]:
        """The node's routes, as JSON."""
        from llmesh.node.desk import OWNER_URL, desk_at, running_socket

        if self.gateway:
            key = self.key or os.environ.get("LLMESH_KEY")
            with _asking_for_a_key(key):
                async with desk_at(self.gateway, key) as desk:
                    yield desk
            return
        from llmesh_sdk.transport import socket_door

        async with running_socket(self.folder) as path, desk_at(OWNER_URL, door=socket_door(path)) as desk:
            yield desk

    @asynccontextmanager
    async def client(self) -> AsyncIterator[MeshClient]:
        """The node by the SDK."""
        from llmesh_sdk import MeshClient

        from llmesh.node.desk import running_socket

        if self.gateway:
            key = self.key or os.environ.get("LLMESH_KEY")
            with _asking_for_a_key(key):
                async with MeshClient(self.gateway, key) as client:
                    yield client
            return
        async with running_socket(self.folder) as path, MeshClient(uds=path) as client:
            yield client


@contextmanager
def _asking_for_a_key(key: str | None) -> Iterator[None]:
    """Who gave none is told how."""
    try:
        yield
    except Unauthorized as error:
        if key:
            raise
        raise Unauthorized(f"{error.message} A key is given by --key or LLMESH_KEY.") from error


class Value(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click only
    """What one of our readers makes of a text."""

    def __init__(self, read: Callable[[str], object], name: str) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails with the reader's own sentence."""
        try:
            return self._read(value) if isinstance(value, str) else value
        except MeshError as error:
            self.fail(error.message, param, ctx)


def of_a_node(verb: Callable[Concatenate[Asked, P], None]) -> Callable[P, None]:
    """The options of every verb, which the verb gets as its first argument."""
    shown = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.", **_KEPT)
    where = click.option(
        "--data-dir", metavar="FOLDER", help="Folder of the node, if it was started with one.", **_KEPT
    )
    return where(shown(click.make_pass_decorator(Asked)(verb)))


def of_a_gateway(verb: Callable[Concatenate[Asked, P], None]) -> Callable[P, None]:
    """The same for a verb that a node elsewhere answers too."""
    url = click.option(
        "--url",
        metavar="URL",
        help="Gateway of the node, if it is not one of this machine's owner.  [env: LLMESH_URL]",
        **_KEPT,
    )
    key = click.option(
        "--key", metavar="KEY", help="Key for that gateway, if it asks for one.  [env: LLMESH_KEY]", **_KEPT
    )
    return url(key(of_a_node(verb)))


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    asked = context.obj or Asked(context.find_root().params)
    given = value or "" if parameter.name == "url" else value
    context.obj = replace(asked, **{str(parameter.name): given})


_KEPT: dict[str, Any] = {"expose_value": False, "callback": _keep}
