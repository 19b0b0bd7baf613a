"""HTTP to one gateway, from whichever event loop the caller runs in.

A connection belongs to the loop it was opened in, so each loop gets a pool of its own, closed when
that loop ends: the pool lives inside an async generator, and both asyncio and trio close the
generators that are still open as a loop's last act.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2

from llmesh.errors import MeshError, NetworkError, NodeUnreachable, RequestTimeout, error_from_code

__all__ = ["Transport"]

CONNECT_TIMEOUT = 5.0
KEEP_ALIVE = 15.0
"""Seconds an idle connection is kept: less than the gateway keeps it, so none is found dead."""
MAX_CONNECTIONS = 100
"""Calls beyond this wait for a free connection."""
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class _Pool:
    keeper: AsyncGenerator[httpx2.AsyncClient]
    http: httpx2.AsyncClient


class Transport:
    """Requests to one base URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pools: dict[object, _Pool] = {}

    async def get(self, path: str, timeout: float, query: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object at a path; errors as of `post`."""
        http = await self._http()
        return await self._answer(http, http.build_request("GET", path, params=query), timeout)

    async def post(self, path: str, timeout: float, body: bytes) -> dict[str, Any]:
        """The JSON object that answers a JSON body.

        Raises NodeUnreachable, NetworkError, RequestTimeout (after `timeout` seconds), or the
        MeshError that the gateway tells.  Cancelling closes the connection, which cancels the work.
        """
        http = await self._http()
        headers = {"Content-Type": "application/json"}
        request = http.build_request("POST", path, content=body, headers=headers)
        return await self._answer(http, request, timeout)

    async def aclose(self) -> None:
        """Close the connections of the running loop; another call would open new ones."""
        pool = self._pools.get(_running_loop())
        if pool is not None:
            await pool.keeper.aclose()

    async def _answer(
        self, http: httpx2.AsyncClient, request: httpx2.Request, timeout: float
    ) -> dict[str, Any]:
        try:
            with anyio.fail_after(timeout):
                return self._read(await http.send(request))
        except TimeoutError:
            raise RequestTimeout(f"{self._url} gave no answer within {timeout:g} s.") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise NodeUnreachable(
                f"No node answers at {self._url}: start one with `python -m llmesh.node`, "
                "or set LLMESH_URL to the address of one."
            ) from None
        except httpx2.RequestError as error:
            raise NetworkError(
                f"The connection to {self._url} broke: {str(error) or type(error).__name__}."
            ) from error

    def _read(self, answer: httpx2.Response) -> dict[str, Any]:
        try:
            body = json.loads(answer.content)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise self.not_a_node(f"{answer.status_code} {answer.text[:_SHOWN]!r}")
        if answer.is_success:
            return body
        raise self._told(answer, body)

    def _told(self, answer: httpx2.Response, problem: dict[str, Any]) -> MeshError:
        code, detail = problem.get("code"), str(problem.get("detail", answer.text[:_SHOWN]))
        request = problem.get("request_id")
        if not isinstance(code, int):
            return NetworkError(f"{self._url} answered {answer.status_code}: {detail}", request_id=request)
        return error_from_code(code, detail, request_id=request, retry_after=problem.get("retry_after"))

    def not_a_node(self, answer: str) -> NetworkError:
        """The error for an answer that no node gives."""
        return NetworkError(f"{self._url} does not answer like an LLMESH node: {answer}.")

    async def _http(self) -> httpx2.AsyncClient:
        loop = _running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            keeper = self._keep_pool(loop)
            pool = self._pools[loop] = _Pool(keeper, await anext(keeper))
        return pool.http

    async def _keep_pool(self, loop: object) -> AsyncGenerator[httpx2.AsyncClient]:
        # Plain HTTP goes to this machine or its network: no proxy, no certificates to load.
        secure = self._url.startswith("https:")
        http = httpx2.AsyncClient(
            base_url=self._url,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE),
            verify=secure,
            trust_env=secure,
        )
        try:
            yield http
        finally:
            self._pools.pop(loop, None)
            await http.aclose()


def _running_loop() -> object:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()
