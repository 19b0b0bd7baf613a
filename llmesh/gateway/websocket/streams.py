"""Streams: the inferences that run on one socket, each in a task of its own.

A stream sends each piece before it asks for the next, so a client that reads slowly holds its own
streams back, up to their providers.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

import trio

from llmesh.core.inference import InferenceRequest
from llmesh.core.wishes import Wishes
from llmesh.errors import Conflict, MeshError, NodeBusy, ValidationFailed
from llmesh.gateway.callers import Caller, Counted, Scope
from llmesh.gateway.inference import Router
from llmesh.gateway.request import new_request_id
from llmesh.gateway.websocket.frames import Cancelled, ErrorFrame, InferenceStream
from llmesh.gateway.websocket.outlet import Outlet
from llmesh.gateway.websocket.telling import told

__all__ = ["Streams"]


@dataclass(slots=True)
class _Stream:
    """One inference under way; `pieces` says whether its text is shown as it comes."""

    id: str
    caller: Caller
    request: InferenceRequest
    wishes: Wishes
    pieces: bool
    scope: trio.CancelScope


class Streams:
    """At most `most` at once, known by their client's names for them."""

    def __init__(self, router: Router, outlet: Outlet, most: int) -> None:
        self._router = router
        self._outlet = outlet
        self._most = most
        self._running: dict[str, _Stream] = {}
        self._none_left = trio.Event()

    def __contains__(self, id: object) -> bool:
        return id in self._running

    def __len__(self) -> int:
        return len(self._running)

    def start(self, frame: InferenceStream, caller: Caller, nursery: trio.Nursery) -> None:
        """Run it in the nursery; all that follows is told in frames.

        Raises ValidationFailed, Unauthorized, RateLimited, Conflict for a name in use, NodeBusy for one
        stream too many; then nothing runs.
        """
        request = frame.to_request(new_request_id())
        stream = _Stream(
            frame.id or request.id, caller, request, frame.to_wishes(), frame.stream, trio.CancelScope()
        )
        self._check(stream)
        caller.require(Scope.INFERENCE)
        caller.count(Counted.API)
        caller.count(Counted.INFERENCE)
        self._running[stream.id] = stream
        nursery.start_soon(self._run, stream)

    def cancel(self, id: str) -> None:
        """Stop one; it ends with a `cancelled` frame.  Raises ValidationFailed where none has the name."""
        if id not in self._running:
            raise ValidationFailed(f"No stream {id!r} runs on this socket.")
        self._running[id].scope.cancel()

    async def finished(self) -> None:
        """Wait until none runs."""
        while self._running:
            await self._none_left.wait()

    def _check(self, stream: _Stream) -> None:
        if stream.id in self._running:
            raise Conflict(f"A stream {stream.id!r} runs on this socket already.")
        if len(self._running) >= self._most:
            raise NodeBusy(f"{self._most} streams run on this socket, the most it may have.", retry_after=1.0)

    async def _run(self, stream: _Stream) -> None:
        try:
            with stream.scope:
                await self._serve(stream)
            if stream.scope.cancelled_caught:
                await self._outlet.send(Cancelled(stream.id))
        finally:
            self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        del self._running[stream.id]
        if not self._running:
            self._none_left.set()
            self._none_left = trio.Event()

    async def _serve(self, stream: _Stream) -> None:
        try:
            async with (
                self._router.stream(stream.request, stream.wishes, stream.caller.purse) as events,
                aclosing(told(events, stream.id, stream.request.id, stream.pieces)) as frames,
            ):
                async for frame in frames:
                    await self._outlet.say(frame.text)
        except MeshError as error:
            error.request_id = stream.request.id
            await self._outlet.send(ErrorFrame.of(error, stream.id))
