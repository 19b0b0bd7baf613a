"""The wall around callbacks: what libp2p calls may fail without taking the host with it.

An exception that leaves a stream handler ends the whole host, and a remote peer can cause one.
This is the room's only `except Exception`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import INetStream
from libp2p.protocol_muxer.multiselect import Multiselect

__all__ = ["contain_handlers", "contained", "end_stream"]

_log = logging.getLogger(__name__)

# How long the reset of a stream may wait for the socket.
_RESET_SECONDS = 1.0


def contained(handler: Callable[[INetStream], Awaitable[None]]) -> Callable[[INetStream], Awaitable[None]]:
    """A stream handler that raises nothing and leaves no stream open behind it."""

    async def run(stream: INetStream) -> None:
        try:
            await handler(stream)
        except Exception as error:
            _log.debug("A stream handler failed: %r", error)
        finally:
            await end_stream(stream)

    return run


def contain_handlers(mux: Multiselect) -> None:
    """Put the wall around handlers that libp2p registered itself (identify, ping, the hash table)."""
    for protocol, handler in list(mux.handlers.items()):
        if handler is not None:
            mux.add_handler(protocol, contained(handler))


async def end_stream(stream: INetStream) -> None:
    """Reset a stream unless it is over already; shielded, at most a second."""
    with trio.move_on_after(_RESET_SECONDS) as cleanup:
        cleanup.shield = True
        await stream.reset()
