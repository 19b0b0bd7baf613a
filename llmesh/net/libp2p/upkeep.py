"""Keeping the host's connections few and its streams bounded.

Lookups in the hash table connect everyone with everyone (45 connections each in a network of 60),
and libp2p neither closes those nor notices a peer that floods a stream which nobody reads.
"""

from __future__ import annotations

import logging
import time
from typing import cast

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.rcmgr import Direction
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from llmesh.core.ids import PeerId
from llmesh.net.libp2p.dialer import Dialer
from llmesh.net.libp2p.guard import contained
from llmesh.net.libp2p.inlets import inlets_of

__all__ = ["Upkeep"]

_log = logging.getLogger(__name__)

# Connections without a session that stay open, newest first, for the next lookup.
IDLE_KEPT = 8
# A peer that dialled us gets this long to open its session before its connection counts as idle.
PATIENCE_SECONDS = 30.0
# Longer than any query of the hash table: a stream of ours seen in two sweeps was left behind.
SWEEP_SECONDS = 30.0
# Bounds per connection, checked each second.  A session uses one stream, a lookup a few.
WATCH_SECONDS = 1.0
MAX_STREAMS = 256
MAX_UNREAD_BYTES = 32 * 1024 * 1024


class Upkeep:
    """Closes idle connections, flooded ones, and streams that a cancelled query left open."""

    def __init__(self, swarm: Swarm, dialer: Dialer, session: TProtocol) -> None:
        self._swarm = swarm
        self._dialer = dialer
        self._session = session
        self._seen: set[YamuxStream] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            for _ in range(int(SWEEP_SECONDS / WATCH_SECONDS)):
                await trio.sleep(WATCH_SECONDS)
                await _close_all([each for each in self._connections() if _is_flooded(each)])
            await self.sweep()
            await self.prune()
            # It notes down every peer that left, and forgets them only where it dials, which it may not here.
            self._swarm.auto_connector._prune_tracking_caches()

    async def hang_up(self) -> None:
        """Close every connection; takes about 0.2 s."""
        await _close_all(self._connections())

    async def prune(self) -> None:
        """Close all but eight of the connections that carry no session; takes about 0.2 s."""
        idle = sorted(filter(self._is_idle, self._connections()), key=_created_at, reverse=True)
        await _close_all(idle[IDLE_KEPT:])

    async def sweep(self) -> None:
        """Reset the streams we opened that were here at the last sweep and carry no session."""
        now = {stream for each in self._connections() for stream in self._ours(each)}
        for stream in now & self._seen:
            with contained("Resetting a stream"), trio.move_on_after(WATCH_SECONDS):
                await stream.reset()
        self._seen = now

    def _connections(self) -> list[SwarmConn]:
        return [cast("SwarmConn", each) for each in self._swarm.get_connections()]

    def _is_idle(self, connection: SwarmConn) -> bool:
        if self._dialer.busy_with(PeerId(str(connection.muxed_conn.peer_id))) or self._sessions(connection):
            return False
        return (
            connection.direction is not Direction.INBOUND
            or time.time() - _created_at(connection) > PATIENCE_SECONDS
        )

    def _ours(self, connection: SwarmConn) -> set[YamuxStream]:
        opened = {each for each in _muxer(connection).streams.values() if each.is_initiator}
        return opened - self._sessions(connection)

    def _sessions(self, connection: SwarmConn) -> set[YamuxStream]:
        return {
            cast("YamuxStream", each.muxed_stream)
            for each in connection.get_streams()
            if each.get_protocol() == self._session
        }


def _muxer(connection: SwarmConn) -> Yamux:
    return cast("Yamux", connection.muxed_conn)


def _created_at(connection: SwarmConn) -> float:
    return connection._created_at


def _is_flooded(connection: SwarmConn) -> bool:
    muxer = _muxer(connection)
    unread = sum(map(len, muxer.stream_buffers.values())) + inlets_of(muxer).unread
    return len(muxer.streams) > MAX_STREAMS or unread > MAX_UNREAD_BYTES


async def _close_all(connections: list[SwarmConn]) -> None:
    """Close together: each close waits 0.2 s for its own tasks."""
    async with trio.open_nursery() as nursery:
        for each in connections:
            nursery.start_soon(_close, each)


async def _close(connection: SwarmConn) -> None:
    _log.debug("Closing the connection with %s.", connection.muxed_conn.peer_id)
    with contained("Closing a connection"):
        await connection.close()
