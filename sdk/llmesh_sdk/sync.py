"""MeshClient for plain scripts and notebooks: the same methods, blocking.

All clients share one event loop in a thread of its own, started with the first call; a notebook's own
loop is not touched.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId
from llmesh.core.wishes import Wishes
from llmesh.errors import MeshError
from llmesh_sdk import client
from llmesh_sdk.receipts import AnswerReceipt
from llmesh_sdk.results import (
    InferencePlan,
    InferenceResult,
    MeshEvent,
    ModelOffer,
    NodeStatus,
    StreamChunk,
    Webhook,
)

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from llmesh_sdk.stream import InferenceStream as AsyncInferenceStream
    from llmesh_sdk.stream import Subscription as AsyncSubscription
    from llmesh_sdk.upload import Progress

__all__ = ["InferenceStream", "MeshClient", "Subscription", "run"]

_R = TypeVar("_R")
_T = TypeVar("_T")


class MeshClient:
    """As `llmesh.MeshClient`, which see for what each method does and raises, but each call blocks.

    Usable from any thread, also beside a notebook's running loop.  Raises RuntimeError inside a trio
    program, whose loop (a node's, maybe) it would stop.  An interrupt cancels the call and its work.
    """

    def __init__(self, url: str | None = None, key: str | None = None, uds: str | Path | None = None) -> None:
        self._client = client.MeshClient(url, key, uds)

    def __repr__(self) -> str:
        return f"llmesh.sync.{self._client!r}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the node's gateway is."""
        return self._client.url

    def close(self) -> None:
        """Close the connections; the client may be used again."""
        _run(self._client.aclose)

    def status(self) -> NodeStatus:
        """Who the node is and how it stands."""
        return _run(self._client.status)

    def search_models(
        self, name: str = "", max_fee: float | str | Amount | None = None, limit: int = 100
    ) -> list[ModelOffer]:
        """Offers whose name contains `name` and that cost at most `max_fee` MESH an inference."""
        return _run(lambda: self._client.search_models(name, max_fee, limit))

    def models(self) -> list[ModelOffer]:
        """Every offer that the node knows of, up to a thousand."""
        return _run(self._client.models)

    def inference(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferenceResult:
        """Run a model on values by name; a bare string means {"text": ...}."""
        return _run(lambda: self._client.inference(model, input_data, timeout, max_fee, wishes))

    def plan(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferencePlan:
        """Who would serve such an inference, in order, at what fee; nothing is run."""
        return _run(lambda: self._client.plan(model, input_data, timeout, max_fee, wishes))

    def stream(
        self,
        model: str,
        input_data: Mapping[str, Any] | str,
        timeout: float = 30.0,
        max_fee: float | str | Amount | None = None,
        wishes: Wishes | None = None,
    ) -> InferenceStream:
        """Run a model and iterate over the pieces of its text as they come."""
        return InferenceStream(self._client.stream(model, input_data, timeout, max_fee, wishes))

    def subscribe(self, events: Collection[str]) -> Subscription:
        """Iterate over what happens at the node, for as long as you like."""
        return Subscription(self._client.subscribe(events))

    def batch_inference(
        self, requests: Sequence[Mapping[str, Any]], timeout: float = 30.0
    ) -> list[InferenceResult | MeshError]:
        """Run many; each result or MeshError is in the place of its request."""
        return _run(lambda: self._client.batch_inference(requests, timeout))

    def deploy_model(
        self,
        model_data: bytes | str | Path,
        metadata: Mapping[str, Any],
        progress: Progress | None = None,
        timeout: float = 3600.0,
    ) -> ModelId:
        """Bring the node a model, which it serves from now on; `progress` is told in another thread."""
        return _run(lambda: self._client.deploy_model(model_data, metadata, progress, timeout))

    def remove_model(self, model: ModelId) -> None:
        """Have the node serve one of its own models no longer."""
        _run(lambda: self._client.remove_model(model))

    def receipt(self, request_id: str) -> AnswerReceipt:
        """What a provider signed for a paid request, as the node has kept it."""
        return _run(lambda: self._client.receipt(request_id))

    def register_webhook(self, url: str, events: Collection[str], secret: str | None = None) -> Webhook:
        """Have the node POST events to `url`, signed by `secret`, or by one that it makes."""
        return self._client.register_webhook(url, events, secret)


class _Blocking(Generic[_T]):
    """An iterator over what an async one gives; leaving `with`, or `close`, ends it."""

    def __init__(self, items: AsyncInferenceStream | AsyncSubscription) -> None:
        self._items: Any = items

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        try:
            item: _T = _run(self._items.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None
        return item

    def close(self) -> None:
        """End it; nothing comes any more."""
        _run(self._items.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class InferenceStream(_Blocking[StreamChunk]):
    """The pieces of one inference's text; leaving `with`, or the loop, cancels the work."""

    @property
    def result(self) -> InferenceResult:
        """The whole answer, once the iteration has ended.  Raises RuntimeError before."""
        result: InferenceResult = self._items.result
        return result


class Subscription(_Blocking[MeshEvent]):
    """The events of a node."""


class _Loop:
    """The event loop in a thread of its own, until the program ends; a forked process starts another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._process = os.getpid()

    def portal(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None or self._process != os.getpid():
                from anyio.from_thread import start_blocking_portal

                running = ExitStack()
                self._portal = running.enter_context(start_blocking_portal(name="llmesh-sdk"))
                self._process = os.getpid()
                atexit.register(self._stop, running, self._portal, self._process)
            return self._portal

    def _stop(self, running: ExitStack, portal: BlockingPortal, process: int) -> None:
        if process == os.getpid():
            with suppress(RuntimeError):
                portal.call(portal.stop, True)
            running.close()


_loop = _Loop()


def _run(work: Callable[[], Awaitable[_R]]) -> _R:
    _refuse_trio()
    return run(work)


def run(work: Callable[[], Awaitable[_R]]) -> _R:
    """Run it in the shared loop and wait; an interrupt cancels it."""

    async def task() -> _R:
        return await work()

    future = _loop.portal().start_task_soon(task)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _refuse_trio() -> None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "llmesh.sync would stop this event loop until the answer comes; if a node runs in it, for ever."
            " Use `await` with llmesh.MeshClient here, or call from another thread."
        )
