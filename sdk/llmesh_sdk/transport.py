"""HTTP to one gateway, from whichever event loop the caller runs in.

A connection belongs to the loop it was opened in, so each loop gets a pool of its own, closed when
that loop ends: the pool lives inside an async generator, and both asyncio and trio close the
generators that are still open as a loop's last act.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import anyio
import httpx2

from llmesh.errors import MeshError, NetworkError, NodeUnreachable, RequestTimeout
from llmesh_sdk.problem import told_error
from llmesh_sdk.socket import Socket, handshake, is_answered
from llmesh_sdk.upload import Upload

__all__ = ["Door", "Transport", "socket_door"]

Door: TypeAlias = Callable[[], httpx2.AsyncBaseTransport]
"""Makes the way to a gateway that is not reached at its URL, once for each event loop."""

CONNECT_TIMEOUT = 5.0
KEEP_ALIVE = 15.0
"""Seconds an idle connection is kept: less than the gateway keeps it, so none is found dead."""
MAX_CONNECTIONS = 100
"""Calls beyond this wait for a free connection."""
TRIES = 3
"""How often a call whose connection broke is sent in all, where a second time changes nothing."""
_LIMITS = httpx2.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE)
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class _Pool:
    keeper: AsyncGenerator[httpx2.AsyncClient]
    http: httpx2.AsyncClient


class Transport:
    """Requests to one base URL; `key` is the gateway's, if it asks for one.

    With a `door` they go by that, whatever the URL says.  `number` reads the numbers with a point.
    Errors speak of the gateway by its `name`, or by the URL.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        door: Door | None = None,
        number: Callable[[str], Any] = float,
        name: str = "",
    ) -> None:
        self._url = url
        self._name = name or url
        self._key = key
        self._door = door
        self._number = number
        self._pools: dict[object, _Pool] = {}

    async def get(self, path: str, timeout: float, query: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object at a path; errors as of `post`."""
        http = await self._http()
        return await self._answer(http, lambda: http.build_request("GET", path, params=query), timeout)

    async def post(self, path: str, timeout: float, body: bytes, tries: int = TRIES) -> dict[str, Any]:
        """The JSON object that answers a JSON body.

        Raises NodeUnreachable, NetworkError, RequestTimeout (after `timeout` seconds), or the
        MeshError that the gateway tells.  Cancelling closes the connection, which cancels the work.
        Each call has an Idempotency-Key, so it is sent again where the connection broke; `tries` is 1
        for a route that does not heed the key.
        """
        http = await self._http()
        headers = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
        return await self._answer(
            http, lambda: http.build_request("POST", path, content=body, headers=headers), timeout, tries
        )

    async def delete(self, path: str, timeout: float) -> dict[str, Any]:
        """The JSON object that answers a DELETE, which is sent once; errors as of `post`."""
        http = await self._http()
        return await self._answer(http, lambda: http.build_request("DELETE", path), timeout, tries=1)

    async def upload(self, path: str, timeout: float, form: Upload) -> dict[str, Any]:
        """The JSON object that answers a form, which is sent once; errors as of `post`."""
        http = await self._http()
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}
        return await self._answer(
            http,
            lambda: http.build_request("POST", path, content=form.pieces(), headers=headers),
            timeout,
            tries=1,
        )

    async def socket(self) -> Socket:
        """A WebSocket of the gateway, for its owner to close; errors as of `post`."""
        http = await self._http()
        with self._faults(CONNECT_TIMEOUT):
            answer = await http.send(handshake(http, "/ws"), stream=True)
            if is_answered(answer):
                return Socket(answer)
            await answer.aread()
        raise self._refusal(answer)

    async def aclose(self) -> None:
        """Close the connections of the running loop; another call would open new ones."""
        pool = self._pools.get(_running_loop())
        if pool is not None:
            await pool.keeper.aclose()

    async def _answer(
        self,
        http: httpx2.AsyncClient,
        build: Callable[[], httpx2.Request],
        timeout: float,
        tries: int = TRIES,
    ) -> dict[str, Any]:
        with self._faults(timeout):
            return self._read(await _sent(http, build, tries))

    @contextmanager
    def _faults(self, timeout: float) -> Iterator[None]:
        """What goes wrong within the block, in our words."""
        try:
            with anyio.fail_after(timeout):
                yield
        except TimeoutError:
            raise RequestTimeout(f"{self._name} gave no answer within {timeout:g} s.") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise NodeUnreachable(
                f"No node answers at {self._name}: start one with `python -m llmesh.node`, "
                "or set LLMESH_URL to the address of one."
            ) from None
        except httpx2.RequestError as error:
            why = str(error).rstrip(".") or type(error).__name__
            raise NetworkError(f"The connection to {self._name} broke: {why}.") from error

    def _read(self, answer: httpx2.Response) -> dict[str, Any]:
        try:
            body = json.loads(answer.content, parse_float=self._number)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise self.not_a_node(f"{answer.status_code} {answer.text[:_SHOWN]!r}")
        if answer.is_success:
            return body
        raise self._told(answer, body)

    def _refusal(self, answer: httpx2.Response) -> MeshError:
        """Why there is no WebSocket."""
        try:
            self._read(answer)
        except MeshError as error:
            return error
        return self.not_a_node(f"{answer.status_code} to the handshake of a WebSocket")

    def _told(self, answer: httpx2.Response, problem: dict[str, Any]) -> MeshError:
        detail = str(problem.get("detail", answer.text[:_SHOWN]))
        return self.error({**problem, "detail": detail, "status": answer.status_code})

    def error(self, problem: Mapping[str, Any]) -> MeshError:
        """The error that a problem document tells."""
        code, detail, request = problem.get("code"), str(problem.get("detail")), problem.get("request_id")
        if not isinstance(code, int):
            status = problem.get("status")
            return NetworkError(f"{self._name} answered {status}: {detail}", request_id=request)
        return told_error(code, detail, problem)

    def not_a_node(self, answer: str) -> NetworkError:
        """The error for an answer that no node gives."""
        return NetworkError(f"{self._name} does not answer like an LLMESH node: {answer}.")

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
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=_LIMITS,
            transport=self._door() if self._door else None,
            verify=secure,
            trust_env=secure,
        )
        try:
            yield http
        finally:
            self._pools.pop(loop, None)
            await http.aclose()


def socket_door(path: str) -> Door:
    """By a Unix socket."""
    return partial(httpx2.AsyncHTTPTransport, uds=path, limits=_LIMITS)


async def _sent(http: httpx2.AsyncClient, build: Callable[[], httpx2.Request], tries: int) -> httpx2.Response:
    """Send again at once where a connection broke: mostly the node had just closed an idle one."""
    for _ in range(tries - 1):
        with suppress(httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            return await http.send(build())
    return await http.send(build())


def _running_loop() -> object:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()
