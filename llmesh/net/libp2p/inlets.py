"""Inlets: data of chosen yamux streams, past libp2p's own multiplexer.

That takes two locks, a deadline and three copies for each frame.  Here frames of data go straight into
the inlet of their stream, where it has one; all else (streams that open, end or are reset, windows,
pings, the data of other streams) reaches libp2p as ever, in its order.  The wire does not change.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import cast

from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    HEADER_SIZE,
    MAX_WINDOW_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
    Yamux,
)

from llmesh.net.libp2p.noise import Session

__all__ = ["Inlet", "Inlets", "Muxers", "inlets_of"]

# Pieces from this size on are kept as they lie in their Noise message, which is at most twice that.
LARGE_BYTES = 32 * 1024

_HEADER = struct.Struct(YAMUX_HEADER_FORMAT)


class Inlet:
    """What came for one stream and nobody took yet, in bytes `unread`; `wake` is told of each piece.

    `room` is what the peer may still send.  It goes below zero when the peer sends more, and nothing is
    kept from then on.
    """

    def __init__(self, room: int, wake: Callable[[], None]) -> None:
        self.room = room
        self.unread = 0
        self._wake = wake
        self._pieces: deque[memoryview | bytearray] = deque()

    def arrive(self, piece: memoryview) -> None:
        """Keep it: a large one as it lies, small ones together, since each would keep all its message."""
        self.room -= len(piece)
        if self.room >= 0:
            self.unread += len(piece)
            if len(piece) >= LARGE_BYTES:
                self._pieces.append(piece)
            elif self._pieces and isinstance(last := self._pieces[-1], bytearray) and len(last) < LARGE_BYTES:
                last += piece
            else:
                self._pieces.append(bytearray(piece))
        self._wake()

    def take(self) -> bytes | memoryview:
        """The next piece, empty where there is none."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self.unread -= len(piece)
        return piece if isinstance(piece, memoryview) else bytes(piece)


class Muxers(MuxerMultistream):
    """Agrees on the multiplexer with each peer; what it makes reads through `Inlets`."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """See the base."""
        muxer = cast("Yamux", await super().new_conn(conn, peer_id))
        muxer.secured_conn = Inlets(cast("Session", conn))  # nothing has read a frame yet
        return muxer


class Inlets(SecureSession):
    """What libp2p's multiplexer reads frames from."""

    def __init__(self, session: Session) -> None:
        super().__init__(
            local_peer=session.local_peer,
            local_private_key=session.local_private_key,
            remote_peer=session.remote_peer,
            remote_permanent_pubkey=session.remote_permanent_pubkey,
            is_initiator=session.is_initiator,
            conn=session.conn,
        )
        self.session = session
        self._inlets: dict[int, Inlet] = {}
        self._body = 0
        self.write = session.write  # type: ignore[method-assign]

    @property
    def unread(self) -> int:
        """Bytes in all inlets together."""
        return sum(inlet.unread for inlet in self._inlets.values())

    def open_inlet(self, stream: int, inlet: Inlet) -> None:
        """Let all data of a stream go into an inlet, from the next frame on."""
        self._inlets[stream] = inlet

    def close_inlet(self, stream: int) -> None:
        """Let libp2p have what still comes of a stream."""
        self._inlets.pop(stream, None)

    async def read(self, n: int | None = None) -> bytes:
        """What is left of a frame's body, or the header of the next frame that is for libp2p.

        Raises what the session's `read` does.
        """
        if self._body:
            data = await self.session.read(self._body if n is None else min(n, self._body))
            self._body -= len(data)
            return data
        while True:
            header = await self.session.read(HEADER_SIZE)
            version, kind, flags, stream, length = _HEADER.unpack(header)
            if kind != TYPE_DATA:
                return header
            inlet = self._inlets.get(stream)
            if inlet is None or flags & FLAG_SYN or length > MAX_WINDOW_SIZE:
                self._body = length
                return header
            while length:
                piece = await self.session.some(length)
                length -= len(piece)
                inlet.arrive(piece)
            if flags:
                return _HEADER.pack(version, kind, flags, stream, 0)


def inlets_of(muxer: Yamux) -> Inlets:
    """The inlets of a connection that `Muxers` made."""
    return cast("Inlets", muxer.secured_conn)
