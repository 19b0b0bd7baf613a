"""Server-sent events: what /ws tells, for those who would rather have plain HTTP.

The data of each event is a frame of /ws.  The event's name is the frame's type, and for what happens
on the mesh the name that was subscribed to, so that a browser's EventSource tells them apart.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Annotated, TypeAlias

import trio
from msgspec import Meta, Struct
from quart import Response

from llmesh.errors import MeshError, NodeBusy, ValidationFailed
from llmesh.gateway.callers import Counted, Scope
from llmesh.gateway.event_schema import event_body
from llmesh.gateway.idempotency import refuse_key
from llmesh.gateway.inference import Router
from llmesh.gateway.inference_schema import decode_inference
from llmesh.gateway.live import EVENT_STREAM, Live, server_sent, with_failure
from llmesh.gateway.openapi import Route
from llmesh.gateway.problems import answer_to
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, decode_query
from llmesh.gateway.websocket.frames import ErrorFrame, EventFrame, Subscribed, to_text
from llmesh.gateway.websocket.telling import told
from llmesh.mesh.events import EventName, Events, Subscription, Told

__all__ = ["events_route", "streaming"]

MAX_LISTENERS = 256
"""Requests that may wait for events at once."""
STILL_HERE = 20.0
"""Seconds of silence after which a comment says that the connection lives."""

_View: TypeAlias = Callable[[Request], Awaitable[Response]]
_NAMES = ", ".join(EventName)


class EventsQuery(Struct, forbid_unknown_fields=True):
    """Which events are wanted."""

    names: Annotated[str, Meta(max_length=256, description=f"Of {_NAMES}, with commas; empty for all.")] = ""

    @property
    def wanted(self) -> tuple[EventName, ...]:
        """The names.  Raises ValidationFailed."""
        try:
            return tuple(map(EventName, self.names.split(","))) if self.names else tuple(EventName)
        except ValueError as error:
            raise ValidationFailed(f"names: {error}; there are {_NAMES}.") from None


def streaming(router: Router, whole: _View) -> _View:
    """A view of inferences that streams to whoever would rather have events than JSON."""

    async def view(request: Request) -> Response:
        best = request.accept_mimetypes.best_match(["application/json", EVENT_STREAM])
        return await (_post_stream(router, request) if best == EVENT_STREAM else whole(request))

    return view


def events_route(events: Events) -> Route:
    """Where the events of a node are told."""
    listeners = _Listeners(events)
    return Route(
        "GET", "/api/v1/events", Scope.READ, partial(_get_events, listeners),
        "What happens at this node, as it happens: the frames of /ws.",
        query=EventsQuery, errors=(NodeBusy,), streams=True,
    )  # fmt: skip


async def _post_stream(router: Router, request: Request) -> Response:
    """Run one inference and tell it as it comes.  A client that hangs up cancels it."""
    refuse_key(request)
    body = decode(await request.json_bytes(), decode_inference)
    if body.dry_run:
        raise ValidationFailed("A dry run has nothing to stream; accept application/json.")
    asked, wishes = body.to_request(request.id), body.to_wishes()
    request.caller.count(Counted.INFERENCE)

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[bytes]]:
        async with (
            router.stream(asked, wishes, request.caller.purse) as events,
            aclosing(told(events, asked.id, asked.id)) as frames,
            aclosing(_or_error(_sent(frames), request)) as pieces,
        ):
            yield pieces

    return Live(opened, partial(answer_to, request_id=asked.id))


async def _sent(frames: AsyncGenerator[tuple[str, str]]) -> AsyncGenerator[bytes]:
    async for kind, text in frames:
        yield server_sent(text.encode(), kind)


def _or_error(pieces: AsyncGenerator[bytes], request: Request) -> AsyncGenerator[bytes]:
    def tell(error: MeshError) -> bytes:
        error.request_id = request.id
        return server_sent(to_text(ErrorFrame.of(error)).encode(), "error")

    return with_failure(pieces, tell)


class _Listeners:
    """Who waits for events, and what happens to be told."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._count = 0

    @contextmanager
    def subscribed(self, names: tuple[EventName, ...]) -> Iterator[Subscription]:
        """What happens from now on.  Raises NodeBusy where MAX_LISTENERS wait already."""
        if self._count >= MAX_LISTENERS:
            raise NodeBusy(f"{self._count} requests wait for events, the most there may be.", retry_after=5.0)
        self._count += 1
        try:
            with self._events.subscribed(names) as subscription:
                yield subscription
        finally:
            self._count -= 1


async def _get_events(listeners: _Listeners, request: Request) -> Response:
    """Tell what happens until the client hangs up, its key is void or the node stops."""
    names = decode_query(request.query_string, EventsQuery).wanted

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[bytes]]:
        with listeners.subscribed(names) as subscription:
            async with aclosing(_or_error(_happening(subscription, request), request)) as pieces:
                yield pieces

    return Live(opened, partial(answer_to, request_id=request.id))


async def _happening(subscription: Subscription, request: Request) -> AsyncGenerator[bytes]:
    yield server_sent(to_text(Subscribed(sorted(subscription.names))).encode(), "subscribed")
    while not request.stopping.is_set():
        happened = await _next(subscription, request.stopping)
        request.readmit()
        yield b": still here\n\n" if happened is None else _told(happened)


def _told(happened: Told) -> bytes:
    event = happened.event
    frame = EventFrame(event.name, event_body(event), happened.dropped)
    return server_sent(to_text(frame).encode(), event.name)


async def _next(subscription: Subscription, stopping: trio.Event) -> Told | None:
    """The next event, or None after STILL_HERE and once the node stops: nobody's waiting is to hold it up."""
    happened = None
    with trio.move_on_after(STILL_HERE) as waiting:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_once, stopping, waiting)
            happened = await anext(subscription)  # kept, also where the time is up right after
            nursery.cancel_scope.cancel()
    return happened


async def _cancel_once(stopping: trio.Event, waiting: trio.CancelScope) -> None:
    await stopping.wait()
    waiting.cancel()
