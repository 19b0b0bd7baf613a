"""Where a verb of the command line takes its questions: the running node, or its files if none runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2

from llmesh.errors import MeshError, NetworkError, NodeUnreachable, error_from_code
from llmesh.node.faults import StartRefused
from llmesh.node.home import IDENTITY
from llmesh.node.owner import fitting_path

__all__ = ["Desk", "open_desk"]

PATIENCE = 60.0
"""Seconds that a node may take for an answer; a large journal takes a while to copy."""


class Desk:
    """The owner's routes of one node; every call raises the MeshError that the node tells.

    Numbers with a point come as Decimal: amounts of MESH stay what they are.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return await self._answer(self._http.build_request("GET", path, params=query))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers another."""
        return await self._answer(self._http.build_request("POST", path, json=body))

    async def _answer(self, request: httpx2.Request) -> dict[str, Any]:
        try:
            answer = await self._http.send(request)
        except httpx2.ConnectError:
            raise NodeUnreachable("No node answers on the owner's socket.") from None
        except httpx2.RequestError as error:
            raise NetworkError(f"The node hung up: {error or type(error).__name__}.") from None
        told: dict[str, Any] = json.loads(answer.content, parse_float=Decimal)
        if answer.is_success:
            return told
        raise _error(told)


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    """The desk of the node whose data directory that is.

    Raises StartRefused where there never was a node, or where it is just starting or stopping.
    """
    if not (folder / IDENTITY).exists():
        raise StartRefused(f"There is no node in {folder}; start it once, or say where with --data-dir.")
    with fitting_path(folder) as path:
        if await _answers(path):
            async with _client(httpx2.AsyncHTTPTransport(uds=path)) as http:
                yield Desk(http)
            return
    async with _open_files(folder) as desk:
        yield desk


@asynccontextmanager
async def _open_files(folder: Path) -> AsyncIterator[Desk]:
    # Takes half a second, which a running node's caller need not wait for.
    from llmesh.node.faces import files_app
    from llmesh.node.home import open_home
    from llmesh.node.resting import open_resting

    with open_home(folder) as home:
        async with open_resting(home) as (keys, wallet):
            app: Any = files_app(home, keys, wallet)
            async with _client(httpx2.ASGITransport(app)) as http:
                yield Desk(http)


def _client(transport: httpx2.AsyncBaseTransport) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url="http://owner", transport=transport, timeout=PATIENCE, trust_env=False)


async def _answers(path: str) -> bool:
    import trio

    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return False
    await stream.aclose()
    return True


def _error(problem: dict[str, Any]) -> MeshError:
    code, detail = problem.get("code"), str(problem.get("detail"))
    if not isinstance(code, int):
        return NetworkError(f"The node answered: {detail}")
    return error_from_code(code, detail, retry_after=problem.get("retry_after"))
