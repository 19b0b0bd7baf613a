"""Finding peers on the local network by multicast DNS (RFC 6762, 6763).

Each node registers a service under its peer id and puts its addresses in the TXT record.  What is
heard is a stranger's word: its shape is checked here, who it is shows when it is dialled.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from zeroconf import InterfaceChoice, ServiceInfo, ServiceListener, Zeroconf

from llmesh.core.ids import PeerId, peer_id
from llmesh.errors import ValidationFailed
from llmesh.net.host import Host, PeerAddress
from llmesh.net.libp2p.addresses import endpoint, well_formed
from llmesh.net.libp2p.guard import contained

__all__ = ["open_mdns"]

_log = logging.getLogger(__name__)
# It warns about each malformed packet of a stranger.
logging.getLogger("zeroconf").setLevel(logging.ERROR)

SERVICE = "_llmesh._tcp.local."
# Peers heard of and not yet taken; more are dropped, for they announce themselves again.
CAPACITY = 64
# One string of a TXT record, with its key.
TXT_BYTES = 255
# The records usually come together; waiting longer for a missing one would delay the stop.
ASK_MILLISECONDS = 300
CLOSE_SECONDS = 0.5


@asynccontextmanager
async def open_mdns(host: Host) -> AsyncIterator[trio.MemoryReceiveChannel[PeerAddress]]:
    """Announce the host on the local network and yield the peers heard there, itself left out.

    A channel of 64: when it is full, news is dropped and nobody waits.  A peer may come more than
    once.  Opening does not wait for the network; closing takes at most half a second.  Without
    multicast the channel stays empty.
    """
    send, receive = trio.open_memory_channel[PeerAddress](CAPACITY)
    async with receive, send, trio.open_nursery() as nursery:
        nursery.start_soon(_take_part, host, send)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()


async def _take_part(host: Host, send: trio.MemorySendChannel[PeerAddress]) -> None:
    try:
        zeroconf = await trio.to_thread.run_sync(_start, host.addresses)
    except OSError as error:
        _log.info("No multicast here, so no peers are found on the local network: %s", error)
        return
    token = trio.lowlevel.current_trio_token()
    try:
        zeroconf.add_service_listener(SERVICE, _Listener(host.peer_id, token, send))
        await _in_thread(partial(_register, zeroconf, host))
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(CLOSE_SECONDS) as cleanup:
            cleanup.shield = True
            await _in_thread(zeroconf.close)


async def _in_thread(call: Callable[[], None]) -> None:
    """Run a blocking call; a cancel leaves it behind to end by itself."""
    # The stubs that libp2p brings along are older than this keyword.
    await trio.to_thread.run_sync(call, abandon_on_cancel=True)  # type: ignore[call-arg]


class _Listener(ServiceListener):
    """Called in zeroconf's own thread; hands what is well formed to the trio loop."""

    def __init__(
        self, me: PeerId, token: trio.lowlevel.TrioToken, send: trio.MemorySendChannel[PeerAddress]
    ) -> None:
        self._me = me
        self._token = token
        self._send = send

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service appeared."""
        with contained("An mDNS answer"):
            info = zc.get_service_info(type_, name, timeout=ASK_MILLISECONDS)
            found = _peer(info.properties) if info is not None else None
            if found is not None and found.peer_id != self._me:
                self._token.run_sync_soon(self._deliver, found)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service changed: a peer came back at another address."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A service left; whoever uses its peer notices by itself."""

    def _deliver(self, found: PeerAddress) -> None:
        try:
            self._send.send_nowait(found)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return


def _start(addresses: Sequence[str]) -> Zeroconf:
    """A node that listens on loopback only stays there."""
    ips = [
        ipaddress.ip_address(each.host) for each in map(endpoint, addresses) if each.kind in ("ip4", "ip6")
    ]
    local = bool(ips) and all(ip.is_loopback for ip in ips)
    return Zeroconf(interfaces=["127.0.0.1"] if local else InterfaceChoice.All, use_asyncio=False)


def _register(zeroconf: Zeroconf, host: Host) -> None:
    with contained("Announcing this node by mDNS"):
        # The name is unique as the key is, so there is nothing to probe for.
        zeroconf.register_service(_service(host), cooperating_responders=True)


def _service(host: Host) -> ServiceInfo:
    ends = [endpoint(address) for address in host.addresses]
    texts = [text for text in host.addresses if len(text) < TXT_BYTES - len("a00=")]
    return ServiceInfo(
        SERVICE,
        f"{host.peer_id}.{SERVICE}",
        port=ends[0].port if ends else 0,
        parsed_addresses=[each.host for each in ends if each.kind in ("ip4", "ip6")],
        properties={"id": str(host.peer_id)} | {f"a{n}": text for n, text in enumerate(texts[:8])},
        server=f"{host.peer_id}.local.",
    )


def _peer(properties: Mapping[bytes, bytes | None]) -> PeerAddress | None:
    """The peer and addresses of a TXT record, or None where it is not well formed."""
    texts = {key: value.decode("ascii", "replace") for key, value in properties.items() if value}
    addresses = well_formed(text for key, text in texts.items() if key.startswith(b"a"))
    try:
        return PeerAddress(peer_id(texts.get(b"id", "")), addresses) if addresses else None
    except ValidationFailed:
        return None
