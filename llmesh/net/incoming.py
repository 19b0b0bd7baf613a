"""The calls that a peer opened: each handler runs in a task of its own, with a deadline of its own.

Whatever happens in a handler ends here, as END or as FAILED with a code.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import trio

from llmesh.core.frames import End, Failed, Open
from llmesh.errors import (
    MeshError,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
    ValidationFailed,
)
from llmesh.net.call import Call, Handler
from llmesh.net.sender import Sender

__all__ = ["MAX_CALLS", "Incoming"]

log = logging.getLogger(__name__)

MAX_CALLS = 256
"""Calls of one peer under way at once; the next is refused with NodeBusy."""


class Incoming:
    """The table of these calls; `calls` holds each until its handler's task is over."""

    def __init__(self, handlers: Mapping[str, Handler], sender: Sender) -> None:
        self.calls: dict[int, Call] = {}
        self._handlers = handlers
        self._sender = sender
        self._scopes: dict[int, trio.CancelScope] = {}

    def open(self, call: Call, frame: Open, nursery: trio.Nursery) -> None:
        """Start the handler in `nursery`, or refuse at once.  Raises ValidationFailed."""
        call.id = frame.call
        handler = self._handlers.get(frame.protocol)
        if handler is None:
            self._fail(call.id, NodeUnreachable(f"This node does not serve {frame.protocol!r}."))
        elif len(self.calls) >= MAX_CALLS:
            busy = f"This node serves {MAX_CALLS} calls of yours already."
            self._fail(call.id, NodeBusy(busy, retry_after=1.0))
        else:
            call.arrive(frame.payload, frame.more)
            deadline = math.inf if call.timeout is None else trio.current_time() + call.timeout
            self.calls[call.id] = call
            self._scopes[call.id] = scope = trio.CancelScope(deadline=deadline)
            nursery.start_soon(self._serve, call, handler, scope)

    def cancel(self, call: Call) -> None:
        """The opener has left: stop the handler, answer nothing."""
        call.end()
        self._scopes[call.id].cancel()

    async def _serve(self, call: Call, handler: Handler, scope: trio.CancelScope) -> None:
        """The root of one call."""
        failure: MeshError | None = None
        try:
            with scope:
                await handler(call, await call.receive())
        except MeshError as error:
            failure = error
        except trio.EndOfChannel:
            failure = ValidationFailed("The call ended in the middle of the conversation.")
        except Exception:
            log.exception("the handler of %s failed", call.protocol)
            failure = NetworkError("The peer failed to serve the call.")
        finally:
            del self.calls[call.id], self._scopes[call.id]
            unwanted = call.over
            call.release()
        if unwanted:
            self._sender.drop(call.id)
        elif scope.cancelled_caught:
            self._fail(call.id, RequestTimeout("The time given for the call has passed."))
        elif failure is not None:
            self._fail(call.id, failure)
        else:
            self._sender.add(call.id, End(call.id))

    def _fail(self, call: int, error: MeshError) -> None:
        self._sender.add(call, Failed(call, error.code, error.message, error.retry_after))
