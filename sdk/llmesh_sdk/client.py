"""MeshClient: search the mesh and run models on it, through the gateway of a node."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from llmesh.core.amount import Amount
from llmesh.errors import ValidationFailed
from llmesh_sdk.results import InferenceResult, ModelOffer, NodeStatus

if TYPE_CHECKING:
    from llmesh_sdk.transport import Transport

__all__ = ["MeshClient"]

DEFAULT_URL = "http://localhost:8080"
ANSWER_TIMEOUT = 10.0
"""Seconds for what a node knows by itself."""
MARGIN = 5.0
"""Seconds beyond an inference's own timeout: the node tells best what went wrong."""
_T = TypeVar("_T")


class MeshClient:
    """A client of one node; `url` defaults to LLMESH_URL or http://localhost:8080.

    One client serves asyncio and trio, any number of tasks, and one event loop after another.
    Connections are closed by `aclose`, by leaving `async with`, and when their event loop ends.

    Every method raises NodeUnreachable where no node answers, NetworkError where the connection
    breaks or something else answers, and the MeshError that the node tells.  Cancelling a call
    cancels its work on the mesh.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = _checked(url or os.environ.get("LLMESH_URL") or DEFAULT_URL)
        self._opened: Transport | None = None

    def __repr__(self) -> str:
        return f"MeshClient({self.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the client may be used again."""
        if self._opened is not None:
            await self._opened.aclose()

    async def status(self) -> NodeStatus:
        """Who the node is and how it stands."""
        answer = await self._transport.get("/api/v1/status", ANSWER_TIMEOUT, {})
        return self._parse(NodeStatus.read, answer)

    async def search_models(
        self, name: str = "", max_fee: float | str | Amount | None = None, limit: int = 100
    ) -> list[ModelOffer]:
        """Offers whose name contains `name` and that cost at most `max_fee` MESH an inference."""
        query = {"name": name, "limit": str(limit)}
        if max_fee is not None:
            query["max_fee"] = str(Amount.parse(max_fee))
        answer = await self._transport.get("/api/v1/models", ANSWER_TIMEOUT, query)
        return self._parse(_offers, answer)

    async def inference(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
    ) -> InferenceResult:
        """Run a model (`name`, `name:version` or `name@id`) on values by name.

        A bare string means {"text": ...}; arrays become nested lists.  `timeout` is in seconds for
        the whole.  Raises also ModelNotFound, RequestTimeout, ValidationFailed, ModelFailed and
        NodeBusy.
        """
        body = {"model": model, "input": input_data, "timeout": timeout}
        if max_fee is not None:
            body["max_fee"] = str(Amount.parse(max_fee))
        patience = _seconds(timeout) + MARGIN
        answer = await self._transport.post("/api/v1/inference", patience, _json(body))
        return self._parse(InferenceResult.read, answer)

    @property
    def _transport(self) -> Transport:
        if self._opened is None:
            # Loads the HTTP client, which costs more than all the rest of the import.
            from llmesh_sdk.transport import Transport

            self._opened = Transport(self.url)
        return self._opened

    def _parse(self, read: Callable[[dict[str, Any]], _T], answer: dict[str, Any]) -> _T:
        try:
            return read(answer)
        except (KeyError, TypeError, ValueError, AttributeError, ValidationFailed):
            raise self._transport.not_a_node(repr(answer)[:120]) from None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValidationFailed(f"{url!r} is not the URL of a gateway, such as {DEFAULT_URL}.")
    return url.rstrip("/")


def _seconds(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValidationFailed(f"A timeout must be a number of seconds above 0, not {timeout!r}.")
    return timeout


def _offers(answer: dict[str, Any]) -> list[ModelOffer]:
    return [ModelOffer.read(fields) for fields in answer["models"]]


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(_plain(body), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationFailed(f"The request cannot be written as JSON: {error}.") from None


def _plain(value: Any) -> Any:
    """The value with its arrays (whatever has `tolist`) as nested lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
