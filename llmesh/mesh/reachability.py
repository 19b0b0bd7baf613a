"""Whether others can dial this node: peers are asked to try, and we try for them.

A node that nobody can dial is a consumer only.  As no wall asks who is behind it, we dial only the
very IP address a peer's session comes from, at most three ports, and say yes only where that peer
itself answered: nobody learns of a third party through us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

import trio

from llmesh.core.ids import PeerId
from llmesh.errors import MeshError, NodeBusy
from llmesh.net.host import Host
from llmesh.net.reachability import ask_dial_back
from llmesh.net.session import Session

__all__ = ["DialBacks", "Reachability"]

ASKED = 3
"""Peers asked in one round."""
FIRST_AFTER = 0.5
AGAIN_AFTER = 30.0
RECHECK_AFTER = 1800.0

MAX_TRIES = 3
PER_PEER_SECONDS = 10.0
MAX_REMEMBERED = 1024


class Peers(Protocol):
    """The sessions a node has; `net.sessions` is."""

    def get(self, peer: PeerId) -> Session | None:
        """The session in use with that peer."""

    def live(self) -> list[Session]:
        """All sessions in use."""


class DialBacks:
    """Dials peers back that ask for it: one peer at a time, each at most once in ten seconds."""

    def __init__(self, host: Host, peers: Peers) -> None:
        self._host = host
        self._peers = peers
        self._turn = trio.Lock()
        self._last: dict[PeerId, float] = {}

    async def dial_back(self, peer: PeerId, addresses: Sequence[str]) -> list[str]:
        """The addresses at which the peer answered a new connection.  Raises NodeBusy too soon."""
        self._count(peer)
        session = self._peers.get(peer)
        if session is None:
            return []
        wanted = [a for a in dict.fromkeys(addresses) if _ip(a) == _ip(session.remote_address)][:MAX_TRIES]
        async with self._turn:
            return [address for address in wanted if await self._host.reaches(peer, address)]

    def _count(self, peer: PeerId) -> None:
        now = trio.current_time()
        wait = self._last.get(peer, now - PER_PEER_SECONDS) + PER_PEER_SECONDS - now
        if wait > 0:
            raise NodeBusy("This peer was dialled back a moment ago.", retry_after=wait)
        if len(self._last) >= MAX_REMEMBERED:
            self._last = {p: t for p, t in self._last.items() if t > now - PER_PEER_SECONDS}
        if len(self._last) >= MAX_REMEMBERED:
            raise NodeBusy("Too many peers want to be dialled back.", retry_after=PER_PEER_SECONDS)
        self._last[peer] = now


class Reachability:
    """What peers found: `reached` holds the addresses that work, None while nobody has tried.

    `run` asks on and on: soon after peers are there, half a minute later where none got through,
    and twice an hour to notice a change.
    """

    def __init__(self, addresses: Callable[[], Sequence[str]], peers: Peers, rng: Random) -> None:
        self.reached: tuple[str, ...] | None = None
        self._addresses = addresses
        self._peers = peers
        self._rng = rng
        self._known = trio.Event()

    async def known(self) -> tuple[str, ...]:
        """Wait until a peer has tried; the addresses that work, none for a consumer only."""
        await self._known.wait()
        return self.reached or ()

    async def run(self) -> None:
        """Ask until cancelled."""
        delay = FIRST_AFTER
        while not await self._ask_some():
            await trio.sleep(delay)
            delay = min(2 * delay, PER_PEER_SECONDS)
        while True:
            await trio.sleep(RECHECK_AFTER if self.reached else AGAIN_AFTER)
            await self._ask_some()

    async def _ask_some(self) -> bool:
        """Ask up to three peers until one got through; whether any of them answered."""
        sessions = self._peers.live()
        answers: list[tuple[str, ...]] = []
        for session in self._rng.sample(sessions, min(ASKED, len(sessions))):
            try:
                answers.append(await ask_dial_back(session, self._addresses()))
            except MeshError:
                continue
            if answers[-1]:
                break
        if not answers:
            return False
        self.reached = answers[-1]
        self._known.set()
        return True


def _ip(address: str) -> str:
    """`/ip4/192.0.2.7` of a multiaddr text; an address with a name has none and matches nothing."""
    kind, _, host = address.removeprefix("/").partition("/")
    host = host.partition("/")[0]
    return f"{kind}/{host}" if kind in ("ip4", "ip6") and host else address
