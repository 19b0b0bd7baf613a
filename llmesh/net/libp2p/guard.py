"""The wall around callbacks: what libp2p calls may fail without taking the host with it.

An exception that leaves a stream handler ends the whole host, and a remote peer can cause one; the
same goes for what judges a stranger's record or follows a stranger's answers through the network.
No other module of the room has an `except Exception`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import trio
from libp2p.abc import INetStream
from libp2p.host.ping import ID as PING
from libp2p.host.ping import handle_ping
from libp2p.protocol_muxer.multiselect import Multiselect

from llmesh.core.ids import PeerId
from llmesh.errors import NodeUnreachable

__all__ = ["Handler", "contain_handlers", "contained", "contained_handler", "end_stream", "opening_session"]

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[INetStream], Awaitable[None]]

# How long the reset of a stream may wait for the socket.
_RESET_SECONDS = 1.0


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Let nothing but a cancel out of the block; what failed goes to the log at debug level."""
    try:
        yield
    except Exception as error:
        _log.debug("%s failed: %r", what, error)


@contextmanager
def opening_session(peer: PeerId) -> Iterator[None]:
    """Let out a cancel, and NodeUnreachable for whatever fails: libp2p reads unchecked what the peer says."""
    try:
        yield
    except Exception as error:
        raise NodeUnreachable(f"Peer {peer} opened no session: {error}.", peer_id=peer) from error


def contained_handler(handler: Handler) -> Handler:
    """A stream handler that raises nothing; the stream of a failed one is reset."""

    async def run(stream: INetStream) -> None:
        with contained("A stream handler"):
            await handler(stream)
            return
        await end_stream(stream)

    return run


def contain_handlers(mux: Multiselect) -> None:
    """Put the wall around the handlers that libp2p registered itself (identify, ping, the hash table)."""
    mux.add_handler(PING, handle_ping)  # the one that was there notes down every peer for ever
    for protocol, handler in list(mux.handlers.items()):
        if handler is not None:
            mux.add_handler(protocol, contained_handler(handler))


async def end_stream(stream: INetStream) -> None:
    """Reset a stream unless it is over already; shielded, at most a second."""
    with trio.move_on_after(_RESET_SECONDS) as cleanup:
        cleanup.shield = True
        await stream.reset()
