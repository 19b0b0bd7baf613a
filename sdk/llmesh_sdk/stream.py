"""What a client iterates over: an inference as its text comes, and the events of a node."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from random import uniform
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

import anyio

from llmesh.errors import (
    MeshError,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RateLimited,
    RequestTimeout,
)
from llmesh_sdk.problem import told_error
from llmesh_sdk.results import InferenceResult, MeshEvent, StreamChunk
from llmesh_sdk.socket import Socket

__all__ = ["InferenceStream", "Subscription"]

SHORTEST, LONGEST = 0.2, 30.0
"""Seconds between two tries to connect again; they double."""
Open: TypeAlias = Callable[[], Awaitable[Socket]]
_T = TypeVar("_T")


class _Iterator(Generic[_T]):
    """An async iterator over a generator that holds a connection; leaving `async with` closes it."""

    def __init__(self, items: AsyncGenerator[_T]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        return await anext(self._items)

    async def aclose(self) -> None:
        """End it; nothing comes any more."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@dataclass(slots=True)
class _Outcome:
    result: InferenceResult | None = None


class InferenceStream(_Iterator[StreamChunk]):
    """The pieces of one inference's text; made by `MeshClient.stream`.

    Iterating raises what `inference` raises.  Leaving the loop, `async with` or `aclose` cancels the
    work, at the provider too.
    """

    def __init__(self, open: Open, asked: bytes, patience: float) -> None:
        # The generator knows nothing of this object: left in the middle, both go at once.
        self._outcome = _Outcome()
        super().__init__(_pieces(open, asked, patience, self._outcome))

    @property
    def result(self) -> InferenceResult:
        """The whole answer, once the iteration has ended.  Raises RuntimeError before."""
        if self._outcome.result is None:
            raise RuntimeError("The stream has not been read to its end.")
        return self._outcome.result


class Subscription(_Iterator[MeshEvent]):
    """The events of a node; made by `MeshClient.subscribe`.

    A connection that breaks is opened again, however long that takes; what happens meanwhile is not
    told.  Raises NodeUnreachable where the first one cannot be had, and what the node refuses.
    """

    def __init__(self, open: Open, events: Collection[str]) -> None:
        super().__init__(_events(open, _text({"type": "subscribe", "events": list(events)})))


async def _pieces(
    open: Open, asked: bytes, patience: float, outcome: _Outcome
) -> AsyncGenerator[StreamChunk]:
    deadline = anyio.current_time() + patience
    socket = await open()
    try:
        await socket.send(asked)
        while True:
            frame = await _within(deadline, socket.receive)
            match frame.get("type"):
                case "chunk":
                    yield _read(StreamChunk.read, frame)
                case "completed":
                    outcome.result = _read(InferenceResult.read, frame)
                    return
                case "error":
                    raise _error(frame)
    finally:
        await socket.aclose()


async def _events(open: Open, asked: bytes) -> AsyncGenerator[MeshEvent]:
    socket: Socket | None = await open()
    pause = SHORTEST
    while True:
        try:
            socket = socket or await open()
            await socket.send(asked)
            while True:
                frame = await socket.receive()
                pause = SHORTEST
                if frame.get("type") == "event":
                    yield _read(MeshEvent.read, frame)
                elif frame.get("type") == "error":
                    raise _error(frame)
        except (NetworkError, NodeUnreachable, NodeBusy, RateLimited) as error:
            rest = max(pause, error.retry_after or 0.0)
        finally:
            if socket is not None:
                await socket.aclose()
                socket = None
        await anyio.sleep(rest * uniform(0.75, 1.25))  # noqa: S311 - so that not all come at once
        pause = min(2 * pause, LONGEST)


async def _within(deadline: float, receive: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        with anyio.fail_after(deadline - anyio.current_time()):
            return await receive()
    except TimeoutError:
        raise RequestTimeout("The node did not end the stream in time.") from None


def _read(read: Callable[[dict[str, Any]], _T], frame: dict[str, Any]) -> _T:
    try:
        return read(frame)
    except (KeyError, TypeError, ValueError, AttributeError, MeshError):
        raise NetworkError(f"This is no frame of a node: {frame!r:.120}.") from None


def _error(frame: dict[str, Any]) -> MeshError:
    code = frame.get("code")
    if not isinstance(code, int):
        return NetworkError(f"The node told an error without a code: {frame!r:.120}.")
    return told_error(code, str(frame.get("message")), frame)


def _text(frame: dict[str, Any]) -> bytes:
    return json.dumps(frame).encode()
