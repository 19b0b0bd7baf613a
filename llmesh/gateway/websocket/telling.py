"""Telling: an inference that streams, as frames, over whatever carries them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

from llmesh.core.exchange import Accepted
from llmesh.core.ids import RequestId
from llmesh.core.inference import Chunk, Result
from llmesh.errors import ModelFailed
from llmesh.gateway.inference import Streamed
from llmesh.gateway.schema import tellable
from llmesh.gateway.websocket.frames import StreamAccepted, StreamChunk, StreamCompleted, to_text

__all__ = ["Frame", "told"]


class Frame(NamedTuple):
    """A frame that is written already, and its type."""

    type: str
    text: str


async def told(
    events: AsyncIterator[Streamed], id: str, request_id: RequestId, pieces: bool = True
) -> AsyncGenerator[Frame]:
    """The first Accepted (others are of later attempts), what has text if `pieces` are wanted, the end.

    Raises what `events` raises, and ModelFailed for an answer that no JSON can hold or that has no end.
    """
    accepted, shown = False, 0
    async for event in events:
        if isinstance(event, Result):
            yield Frame("completed", _completed(event, id))
            return
        if isinstance(event, Accepted) and not accepted:
            accepted = True
            yield Frame("accepted", to_text(StreamAccepted(id, request_id, event.queued)))
        elif isinstance(event, Chunk) and event.text and pieces:
            yield Frame("chunk", to_text(StreamChunk(id, shown, event.text)))
            shown += 1
    raise ModelFailed("The answer ended without an end.")


def _completed(result: Result, id: str) -> str:
    with tellable():
        frame = StreamCompleted.of(result)
        frame.id = id
        return to_text(frame)
