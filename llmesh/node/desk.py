"""Where a verb of the command line takes its questions: the running node, or its files if none runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
from llmesh_sdk.transport import Door, Transport, socket_door

from llmesh.errors import NodeUnreachable
from llmesh.node.config import data_dir_option
from llmesh.node.faults import StartRefused
from llmesh.node.home import IDENTITY
from llmesh.node.owner import fitting_path

__all__ = ["Desk", "desk_at", "open_desk", "running_socket"]

PATIENCE = 60.0
"""Seconds that a node may take for an answer; a large journal takes a while to copy."""
OWNER_URL = "http://owner"


class Desk:
    """The routes of one node as JSON; every call raises the MeshError that the node tells.

    Numbers with a point come as Decimal: amounts of MESH stay what they are.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return await self._transport.get(path, PATIENCE, query)

    async def post(self, path: str, body: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """The JSON object that answers another, which is sent once, within so many seconds."""
        return await self._transport.post(path, patience, json.dumps(body).encode(), tries=1)

    async def delete(self, path: str) -> dict[str, Any]:
        """The JSON object that answers a DELETE."""
        return await self._transport.delete(path, PATIENCE)


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    """The owner's desk of the node whose data directory that is.

    Raises StartRefused where there never was a node, or where it is just starting or stopping.
    """
    async with _socket(folder) as path:
        if path is not None:
            async with desk_at(OWNER_URL, door=socket_door(path)) as desk:
                yield desk
            return
    async with _open_files(folder) as desk:
        yield desk


@asynccontextmanager
async def desk_at(url: str, key: str | None = None, door: Door | None = None) -> AsyncIterator[Desk]:
    """The desk of a gateway."""
    transport = Transport(url, key, door, Decimal, "" if door is None else "the node")
    try:
        yield Desk(transport)
    finally:
        await transport.aclose()


@asynccontextmanager
async def running_socket(folder: Path) -> AsyncIterator[str]:
    """A path of the owner's socket of the node that runs there, good while the block lasts.

    Raises NodeUnreachable where none runs, StartRefused where there never was one.
    """
    async with _socket(folder) as path:
        if path is None:
            start = f"llmesh start{data_dir_option(folder)}"
            raise NodeUnreachable(f"The node in {folder} does not run; start it with `{start}`.")
        yield path


@asynccontextmanager
async def _socket(folder: Path) -> AsyncIterator[str | None]:
    if not (folder / IDENTITY).exists():
        raise StartRefused(f"There is no node in {folder}; start it once, or say where with --data-dir.")
    with fitting_path(folder) as path:
        yield path if await _answers(path) else None


@asynccontextmanager
async def _open_files(folder: Path) -> AsyncIterator[Desk]:
    # Takes half a second, which a running node's caller need not wait for.
    from llmesh.node.faces import files_app
    from llmesh.node.home import open_home
    from llmesh.node.resting import open_resting

    with open_home(folder) as home:
        async with open_resting(home) as (keys, wallet):
            app: Any = files_app(home, keys, wallet)
            async with desk_at(OWNER_URL, door=lambda: httpx2.ASGITransport(app)) as desk:
                yield desk


async def _answers(path: str) -> bool:
    import trio

    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return False
    await stream.aclose()
    return True
