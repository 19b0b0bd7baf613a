"""One yamux stream as a Link.  The session's two tasks are the only ones that use it.

It reads past libp2p's own stream class, which sends a window update for each read and so cannot be
cancelled: here the receive window is ours, granted once and then in large steps.  What comes for the
stream lies in an inlet of its own (see `inlets`).
"""

from __future__ import annotations

import struct
from typing import cast

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.yamux.yamux import (
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    YamuxStream,
)

from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError
from llmesh.net.libp2p.guard import end_stream
from llmesh.net.libp2p.inlets import Inlet, inlets_of

__all__ = ["StreamLink", "open_link"]

# Measured: 18 % more throughput than the default 256 KiB for bodies of 600 KB; 16 MiB adds nothing.
WINDOW_BYTES = 4 * 1024 * 1024
# Credit is returned in steps, one small frame for a megabyte.
GRANT_BYTES = 1024 * 1024
# With its 12-byte header such a write fills exactly two Noise messages.
WRITE_BYTES = 131026
# yamux itself waits 5 s for credit; a trickle of credit must not stretch one write for ever.
WRITE_SECONDS = 8.0


class StreamLink:
    """See `llmesh.net.host.Link`."""

    def __init__(self, stream: INetStream, *, initiator: bool) -> None:
        mux = cast("NetStream", stream).muxed_stream
        self.peer_id = PeerId(str(stream.muxed_conn.peer_id))
        self.remote_address = _address_text(stream.get_remote_address())
        self.initiator = initiator
        self._stream = stream
        self._mux = cast("YamuxStream", mux)
        # What came before the inlet was there, or in a frame that libp2p had begun to read.
        self._earlier = self._mux.conn.stream_buffers.get(self._mux.stream_id, bytearray())
        self._inlet = Inlet(self._mux.recv_window, self._wake)
        self._closed = False
        self._inlets = inlets_of(self._mux.conn)
        self._inlets.open_inlet(self._mux.stream_id, self._inlet)
        self._session = self._inlets.session

    async def read(self) -> bytes | memoryview:
        """Some bytes, at most 256 KiB.  Raises NetworkError at the end.  Safe to cancel."""
        if self._ungranted() >= GRANT_BYTES:
            await self.grant()
        return await self._receive()

    async def write(self, data: bytes) -> None:
        """Send all of at most 131 026 bytes.  Shielded and bounded in time; raises NetworkError."""
        if self._closed:
            raise self._lost("the link is closed")
        try:
            if self._takes(len(data)) and not self._session.writing:
                await self._send(data)  # waits for nothing but the socket, which shields and bounds that
                return
            with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_SECONDS):
                await (self._send(data) if self._takes(len(data)) else self._mux.write(data))
                return
        except BaseLibp2pError as error:
            raise self._lost(str(error)) from error
        await self.aclose()
        raise self._lost(f"it took no data for {WRITE_SECONDS:g} s")

    async def aclose(self) -> None:
        """End both directions at once; a reader gets NetworkError."""
        self._closed = True
        self._wake()
        try:
            await end_stream(self._stream)
        finally:
            self._inlets.close_inlet(self._mux.stream_id)

    async def grant(self) -> None:
        """Fill the peer's credit up to 4 MiB.  Shielded, bounded by the transport; raises NetworkError."""
        credit = self._ungranted()
        self._inlet.room += credit
        try:
            with trio.CancelScope(shield=True):
                await self._session.write(self._header(TYPE_WINDOW_UPDATE, credit))
        except BaseLibp2pError as error:
            raise self._lost(str(error)) from error

    def _takes(self, size: int) -> bool:
        """Whether the peer's window has room for so much, as it does while the peer reads."""
        mux = self._mux
        return not (mux.closed or mux.send_closed) and mux.send_window >= size

    async def _send(self, data: bytes) -> None:
        """As one frame; libp2p's own write takes three locks and a checkpoint for every 64 KiB."""
        self._mux.send_window -= len(data)
        await self._session.write(self._header(TYPE_DATA, len(data)) + data)

    def _header(self, kind: int, length: int) -> bytes:
        return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, 0, self._mux.stream_id, length)

    async def _receive(self) -> bytes | memoryview:
        """The next of what has come, without a round of the scheduler where there is something."""
        conn, stream = self._mux.conn, self._mux.stream_id
        while not (self._inlet.unread or self._earlier or self._ended()):
            await conn.stream_events[stream].wait()
            if not self._ended():
                conn.stream_events[stream] = trio.Event()
        if self._closed:
            raise self._lost("the link is closed")
        if self._inlet.room < 0:
            await self.aclose()
            raise self._lost("it sent more than its window allows")
        if self._earlier:
            earlier = bytes(self._earlier)
            self._earlier.clear()
            return earlier
        if data := self._inlet.take():
            return data
        raise self._lost("the peer ended it")

    def _wake(self) -> None:
        if (event := self._mux.conn.stream_events.get(self._mux.stream_id)) is not None:
            event.set()

    def _ended(self) -> bool:
        return self._closed or self._inlet.room < 0 or self._mux.closed or self._mux.recv_closed

    def _ungranted(self) -> int:
        """What the peer may be allowed to send besides what it has credit for and what is unread.

        Nothing where that is more than a window: libp2p gives credit of its own for each read of the
        negotiation, and a peer can make it read as often as it likes.
        """
        room = self._inlet.room
        return max(0, WINDOW_BYTES - room - self._inlet.unread - len(self._earlier)) if room >= 0 else 0

    def _lost(self, why: str) -> NetworkError:
        return NetworkError(f"The link to peer {self.peer_id} broke: {why}.", peer_id=self.peer_id)


async def open_link(stream: INetStream, *, initiator: bool) -> StreamLink:
    """A link over a negotiated stream, with its window granted.  Raises NetworkError."""
    link = StreamLink(stream, initiator=initiator)
    await link.grant()
    return link


def _address_text(remote: tuple[str, int] | None) -> str:
    if remote is None:
        return ""
    host, port = remote
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
