"""MeshClient: search the mesh and run models on it, through the gateway of a node."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, model_id
from llmesh.core.ids import request_id as valid_request_id
from llmesh.core.wishes import Wishes
from llmesh.errors import MeshError, ValidationFailed
from llmesh_sdk.receipts import AnswerReceipt
from llmesh_sdk.results import InferencePlan, InferenceResult, ModelOffer, NodeStatus, Webhook

if TYPE_CHECKING:
    from llmesh_sdk.socket import Socket
    from llmesh_sdk.stream import InferenceStream, Subscription
    from llmesh_sdk.transport import Transport
    from llmesh_sdk.upload import Progress

__all__ = ["MeshClient"]

DEFAULT_URL = "http://localhost:8080"
ANSWER_TIMEOUT = 10.0
"""Seconds for what a node knows by itself."""
MARGIN = 5.0
"""Seconds beyond an inference's own timeout: the node tells best what went wrong."""
_INFERENCE = "/api/v1/inference"
_ROWS, _BYTES = 256, 8 << 20
"""The most that is sent as one batch."""
_AT_ONCE = 32
"""Rows of a batch that a node runs at a time."""
_T = TypeVar("_T")


class MeshClient:
    """A client of one node; `url` defaults to LLMESH_URL or http://localhost:8080, `key` to LLMESH_KEY.

    With `uds`, the path of a Unix socket such as a node's `owner.sock`, it goes by that instead; the
    environment is not asked then.

    One client serves asyncio and trio, any number of tasks, and one event loop after another.
    Connections are closed by `aclose`, by leaving `async with`, and when their event loop ends.

    Every method raises NodeUnreachable where no node answers, NetworkError where the connection
    breaks or something else answers, and the MeshError that the node tells.  Cancelling a call
    cancels its work on the mesh.
    """

    def __init__(self, url: str | None = None, key: str | None = None, uds: str | Path | None = None) -> None:
        environ = os.environ if uds is None else {}
        self.url = _checked(url or environ.get("LLMESH_URL") or DEFAULT_URL)
        self._key = key or environ.get("LLMESH_KEY") or None
        self._uds = uds
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

    async def models(self) -> list[ModelOffer]:
        """Every offer that the node knows of, up to a thousand."""
        return await self.search_models(limit=1000)

    async def inference(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferenceResult:
        """Run a model (`name`, `name:version` or `name@id`) on values by name.

        A bare string means {"text": ...}; arrays become nested lists.  `timeout` is in seconds for
        the whole.  `wishes` say whom you want.  Raises also ModelNotFound, RequestTimeout,
        ValidationFailed, ModelFailed and NodeBusy.
        """
        body = _asked(model, input_data, timeout, max_fee, wishes)
        answer = await self._transport.post(_INFERENCE, _seconds(timeout) + MARGIN, _json(body))
        return self._parse(InferenceResult.read, answer)

    def stream(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferenceStream:
        """Run a model and iterate, with `async for`, over the pieces of its text as they come.

        At the end `result` of what this returns has the whole answer.  Leaving `async with` around it,
        or its `aclose`, cancels the work on the provider; so does leaving the loop, a little later.
        Iterating raises what `inference` raises.
        """
        from llmesh_sdk.stream import InferenceStream

        asked = _json({"type": "inference_stream", **_asked(model, input_data, timeout, max_fee, wishes)})
        return InferenceStream(self._open_socket, asked, _seconds(timeout) + MARGIN)

    def subscribe(self, events: Collection[str]) -> Subscription:
        """Iterate, with `async for`, over what happens at the node, for as long as you like.

        `events` are names such as inference, peer_update, model_announce, transfer, model_deployed.  A
        connection that breaks is opened again; what happens meanwhile is not told.  Raises, iterating,
        NodeUnreachable where there is none at first, ValidationFailed for an unknown name.
        """
        from llmesh_sdk.stream import Subscription

        if isinstance(events, str):
            raise ValidationFailed(f"Events are a list of names, such as [{events!r}].")
        return Subscription(self._open_socket, events)

    async def plan(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferencePlan:
        """Who would serve such an inference, in order, at what fee; nothing is run."""
        body = {**_asked(model, input_data, timeout, max_fee, wishes), "dry_run": True}
        answer = await self._transport.post(_INFERENCE, _seconds(timeout) + MARGIN, _json(body))
        return self._parse(InferencePlan.read, answer)

    async def batch_inference(
        self, requests: Sequence[Mapping[str, Any]], timeout: float = 30.0
    ) -> list[InferenceResult | MeshError]:
        """Run many: each has `model` and `input`, and may have `timeout`, `max_fee` and the like.

        The results come in the same order; a request that failed has its MeshError there, and the
        others have their results.  The node runs a bounded number at a time; `timeout` (seconds) is
        for each that has none of its own.  Raises what concerns them all, such as NodeUnreachable.
        """
        rows = [_row(request, timeout) for request in requests]
        longest = max((_seconds(row["timeout"]) for row in rows), default=timeout)
        results: list[InferenceResult | MeshError] = []
        for body, count in _batches([_json(row) for row in rows]):
            patience = longest * -(-count // _AT_ONCE) + MARGIN
            answer = await self._transport.post(f"{_INFERENCE}/batch", patience, body)
            results += self._parse(partial(self._rows, count), answer)
        return results

    async def deploy_model(
        self,
        model_data: bytes | str | Path,
        metadata: Mapping[str, Any],
        progress: Progress | None = None,
        timeout: float = 3600.0,
    ) -> ModelId:
        """Bring the node a model, which it serves from now on: an `.onnx` file, an archive, or a folder.

        `model_data` is such a file's bytes, or a path here.  `metadata` has `name` and may have
        `version`, `description` and `fee` (MESH an inference).  `progress` is told bytes sent and in
        all.  Raises ValidationFailed for what is no model, InsufficientStake, Conflict where another
        model has the name and version, TooLarge where the node's store is full.
        """
        if not isinstance(model_data, bytes | str | Path):
            raise ValidationFailed(f"A model is bytes or a path, not {type(model_data).__name__}.")
        from llmesh_sdk.upload import Upload

        async with Upload(model_data, _plain(metadata), progress) as form:
            answer = await self._transport.upload("/api/v1/models", _seconds(timeout), form)
        return self._parse(lambda told: ModelId(told["model_id"]), answer)

    async def remove_model(self, model: ModelId) -> None:
        """Have the node serve one of its own models no longer.  Raises ModelNotFound for another's."""
        await self._transport.delete(f"/api/v1/models/{model_id(model)}", ANSWER_TIMEOUT)

    async def receipt(self, request_id: str) -> AnswerReceipt:
        """What a provider signed for a paid request, as the node has kept it; its `verify` works offline.

        An inference's own `result.receipt` is the same, free work included.  Raises NotFound where the
        node has none.
        """
        name = valid_request_id(request_id)
        answer = await self._transport.get(f"/api/v1/receipts/{name}", ANSWER_TIMEOUT, {})
        return self._parse(AnswerReceipt.kept, answer)

    def register_webhook(self, url: str, events: Collection[str], secret: str | None = None) -> Webhook:
        """Have the node POST events to `url`, signed by `secret` (Standard Webhooks), or by one it makes.

        `events` are inference_complete and model_deployed.  It blocks for a moment and has registered
        when it returns; the result may be awaited as well.  The same URL, events and secret again are the
        same webhook.  Raises ValidationFailed for a URL that is not on the public internet and that the
        node does not allow, RuntimeError inside the event loop that runs the node.
        """
        if isinstance(events, str):
            raise ValidationFailed(f"Events are a list of names, such as [{events!r}].")
        from llmesh_sdk.serving import refuse_own_node
        from llmesh_sdk.sync import run

        refuse_own_node("register_webhook")
        body = {"url": url, "events": list(events), **({} if secret is None else {"secret": secret})}
        sent = _json(body)
        return run(lambda: self._register(sent))

    async def _register(self, body: bytes) -> Webhook:
        try:  # the node resolves the host's name before it answers
            answer = await self._transport.post("/api/v1/webhooks", 2 * ANSWER_TIMEOUT, body)
        finally:
            await self._transport.aclose()  # of a loop that its caller does not know of
        return self._parse(Webhook.read, answer)

    async def _open_socket(self) -> Socket:
        return await self._transport.socket()

    @property
    def _transport(self) -> Transport:
        if self._opened is None:
            # Loads the HTTP client, which costs more than all the rest of the import.
            from llmesh_sdk.transport import Transport, socket_door

            if self._uds is None:
                self._opened = Transport(self.url, self._key)
            else:
                door = socket_door(str(self._uds))
                self._opened = Transport(self.url, self._key, door, name=f"unix:{self._uds}")
        return self._opened

    def _rows(self, count: int, answer: dict[str, Any]) -> list[InferenceResult | MeshError]:
        rows = answer["results"]
        if len(rows) != count:
            raise ValueError("an answer with another number of rows")
        return [
            self._transport.error(row["error"]) if "error" in row else InferenceResult.read(row["result"])
            for row in rows
        ]

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


def _asked(
    model: str,
    input_data: Mapping[str, Any] | str,
    timeout: float,
    max_fee: float | str | Amount | None,
    wishes: Wishes | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": input_data, "timeout": timeout}
    if max_fee is not None:
        body["max_fee"] = str(Amount.parse(max_fee))
    if wishes is not None:
        body["sort"] = wishes.sort.value
        body["min_stake"] = str(wishes.min_stake)
        body["providers"] = {"only": sorted(wishes.allow), "ignore": sorted(wishes.deny)}
    return body


def _row(request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    if not isinstance(request, Mapping) or request.get("dry_run"):
        raise ValidationFailed(
            f'A batch is of {{"model": ..., "input": ...}} to be run, not {request!r:.80}.'
        )
    row = {"timeout": timeout, **request}
    if row.get("max_fee") is not None:
        row["max_fee"] = str(Amount.parse(row["max_fee"]))
    return row


def _batches(rows: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """The bodies of as many batches as it takes, each with the number of its rows."""
    batch: list[bytes] = []
    for row in rows:
        if batch and (len(batch) == _ROWS or sum(map(len, batch)) + len(row) > _BYTES):
            yield _batch(batch)
            batch = []
        batch.append(row)
    if batch:
        yield _batch(batch)


def _batch(rows: Sequence[bytes]) -> tuple[bytes, int]:
    return b'{"requests":[' + b",".join(rows) + b"]}", len(rows)


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
