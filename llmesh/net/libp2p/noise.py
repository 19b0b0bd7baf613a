"""Noise with less work for each message: libp2p shakes hands, the sealed bytes then go straight to the pipe.

The stock session awaits half a dozen layers for every two bytes of a length, and joins nothing that it
writes.  The bytes on the wire are the same: a 2-byte length, then a Noise transport message
(the libp2p Noise specification, "Wire format").
"""

from __future__ import annotations

from typing import cast

import trio
from cryptography.exceptions import InvalidTag
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter
from libp2p.security.noise.transport import Transport
from libp2p.security.secure_session import SecureSession
from noise.exceptions import NoiseInvalidMessage  # type: ignore[import-untyped]
from noise.state import CipherState  # type: ignore[import-untyped]

from llmesh.net.libp2p.transport import SocketPipe

__all__ = ["MAX_PLAIN", "Noise", "Session"]

MAX_PLAIN = MAX_PLAINTEXT_LENGTH
"""Bytes that one Noise message carries."""

LENGTH = 2
TAG = 16


class Noise(Transport):
    """The host's only security transport; every connection under it is a `SocketPipe`."""

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Shake hands as the side that was dialled."""
        return Session(cast("SecureSession", await super().secure_inbound(conn)), _pipe(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Shake hands as the side that dialled."""
        return Session(cast("SecureSession", await super().secure_outbound(conn, peer_id)), _pipe(conn))


class Session(SecureSession):
    """One task reads, any number write; the writes leave whole, in the order of their calls."""

    def __init__(self, shaken: SecureSession, pipe: SocketPipe) -> None:
        super().__init__(
            local_peer=shaken.local_peer,
            local_private_key=shaken.local_private_key,
            remote_peer=shaken.remote_peer,
            remote_permanent_pubkey=shaken.remote_permanent_pubkey,
            is_initiator=shaken.is_initiator,
            conn=shaken.conn,
        )
        noise = cast("NoiseTransportReadWriter", shaken.conn).noise_state.noise_protocol
        self._sealing: CipherState = noise.cipher_state_encrypt
        self._opening: CipherState = noise.cipher_state_decrypt
        self._pipe = pipe
        self._turn = trio.Lock()
        self._plain = memoryview(b"")
        self._start = 0

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, or some for None.

        Raises IncompleteReadError and ConnectionClosedError at the end, NoiseInvalidMessage for what the
        peer did not seal.  A cancelled read may lose bytes: whoever cancels closes the connection.
        """
        if n is None or n == 0:
            return b"" if n == 0 else bytes(await self.some(MAX_PLAIN))
        parts = [await self.some(n)]
        missing = n - len(parts[0])
        while missing:
            parts.append(await self.some(missing))
            missing -= len(parts[-1])
        return b"".join(parts)

    async def some(self, most: int) -> memoryview:
        """At least one byte and at most `most`, uncopied: they keep all of their message in memory.

        Raises what `read` does.
        """
        if self._start == len(self._plain):
            await self._refill()
        start = self._start
        self._start = end = min(start + most, len(self._plain))
        return self._plain[start:end]

    @property
    def writing(self) -> bool:
        """Whether a write must wait for another."""
        return self._turn.locked()

    async def write(self, data: bytes) -> None:
        """Seal and send all of it at once.  Cancelled before its turn has come, it sends nothing."""
        try:
            self._turn.acquire_nowait()  # to await a free lock costs a round of the scheduler
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            await self._pipe.write(self._sealed(data))
        finally:
            self._turn.release()

    def _sealed(self, data: bytes) -> bytearray:
        """As noise's own `encrypt_with_ad` does, but without a copy of each message."""
        plain, state, end = memoryview(data), self._sealing, 0
        sealed = bytearray(len(plain) + (LENGTH + TAG) * -(-len(plain) // MAX_PLAIN))
        room = memoryview(sealed)
        for start in range(0, len(plain), MAX_PLAIN):
            message = plain[start : start + MAX_PLAIN]
            begin, end = end + LENGTH, end + LENGTH + len(message) + TAG
            sealed[begin - LENGTH : begin] = (end - begin).to_bytes(LENGTH, "big")
            nonce, state.n = state.n, state.n + 1  # first: no failure may lead to a second use
            state.cipher.cipher.encrypt_into(state.cipher.format_nonce(nonce), message, None, room[begin:end])
        return sealed

    async def _refill(self) -> None:
        """Have at least one byte of what came."""
        length = int.from_bytes(self._pipe.take(LENGTH) or await self._exactly(LENGTH), "big")
        sealed = self._pipe.take(length) or await self._exactly(length)
        try:
            self._plain = memoryview(self._opening.decrypt_with_ad(None, sealed))
        except InvalidTag:
            raise NoiseInvalidMessage("The peer sent what it did not seal.") from None
        self._start = 0
        if not self._plain:
            raise ConnectionClosedError("The peer sent an empty message.", transport="tcp")

    async def _exactly(self, n: int) -> bytes:
        parts = [await self._pipe.read(n)]
        missing = n - len(parts[0])
        while missing:
            if not (part := await self._pipe.read(missing)):
                raise IncompleteReadError("The connection ended.", n, n - missing)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _pipe(conn: IRawConnection) -> SocketPipe:
    return cast("SocketPipe", cast("RawConnection", conn).stream)
