"""Entry points: the hash table as a way in and a mailbox, never an index.

A provider puts its own announcement there and says under the keys of its names and models that it
may be asked.  A holder keeps only the first twenty of a key, squatters among them, so what is found
is a list of strangers to ask, nothing more.  Nobody waits for any of this on the path of a request.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random

import trio

from llmesh.core.announcement import Announcement, SignedAnnouncement
from llmesh.core.ids import PeerId
from llmesh.core.reference import ModelRef
from llmesh.errors import MeshError
from llmesh.net.host import Dht, PeerAddress

__all__ = ["EPOCH", "EntryPoints", "entry_key"]

log = logging.getLogger(__name__)

EPOCH = 6 * 3600
"""Seconds for which a key is good: who squats on it has to begin again."""
REFRESH = 3 * 3600.0
"""Seconds after which everything is stored anew, since holders come and go."""
BOUND = 8.0
"""Seconds for one operation of the hash table."""
BETWEEN = 1.0
"""Seconds between two keys: a holder takes ten of one sender in ten seconds."""
DELAY = 2.0, 12.0
"""Seconds before a change is stored: gossip is faster, and nodes that look up all at once stall."""
SETTLE = 60.0
"""Seconds between two rounds: changes meanwhile are stored together."""


def entry_key(text: str, now: float) -> bytes:
    """The 32-byte key of a full name or a model id in the epoch of `now` (seconds since 1970)."""
    return hashlib.sha256(f"llmesh entry point {int(now // EPOCH)}\n{text}".encode()).digest()


class EntryPoints:
    """Keeps this node's own entries, and reads those of others."""

    def __init__(self, own: PeerId, dht: Dht, clock: Callable[[], float], rng: Random) -> None:
        self._own = own
        self._dht = dht
        self._clock = clock
        self._rng = rng
        self._record: SignedAnnouncement | None = None
        self._changed = trio.Event()
        # When each key was provided, and the announcement put, under the addresses that it tells.
        self._stored: dict[bytes | tuple[str, ...], float] = {}

    def publish(self, record: SignedAnnouncement) -> None:
        """Store this node's announcement from now on; a mere renewal waits for the next round."""
        before, self._record = self._record, record
        if before is None or not record.announcement.renews(before.announcement):
            self._changed.set()

    async def run(self) -> None:
        """Store soon after a change, in every epoch and every few hours."""
        while True:
            await self._changed.wait()
            await trio.sleep(self._rng.uniform(*DELAY))
            self._changed = trio.Event()
            await self.store()
            await trio.sleep(SETTLE)
            with trio.move_on_after(self._until_next()):
                await self._changed.wait()
            self._changed.set()

    async def store(self) -> None:
        """Put the announcement and name this node under every key, where that was not done lately.

        The announcement is there for its addresses: a change of offers alone is no reason to put it.
        """
        if (record := self._record) is None:
            return
        said, now = record.announcement, self._clock()
        keys = [entry_key(text, now) for text in _texts(said)]
        wanted = {*keys, said.addresses}
        self._stored = {
            item: at for item, at in self._stored.items() if item in wanted and at > now - REFRESH / 2
        }
        if said.addresses not in self._stored or not said.offers:
            await self._attempt(said.addresses, partial(self._dht.put, self._own, record.packed))
        for key in keys:
            if key not in self._stored:
                await self._attempt(key, partial(self._dht.provide, key))
                await trio.sleep(BETWEEN)

    async def find(self, ref: ModelRef) -> list[PeerAddress]:
        """Strangers who may know the model, in random order, of this epoch and the one before."""
        text = str(ref.id or ref.name)
        found: dict[PeerId, PeerAddress] = {}
        for now in (self._clock(), self._clock() - EPOCH):
            with trio.move_on_after(BOUND / 2), suppress(MeshError):
                for contact in await self._dht.find(entry_key(text, now)):
                    found.setdefault(contact.peer_id, contact)
        found.pop(self._own, None)
        contacts = list(found.values())
        self._rng.shuffle(contacts)
        return contacts

    async def _attempt(self, item: bytes | tuple[str, ...], operation: Callable[[], Awaitable[bool]]) -> None:
        """What fails is tried again in the next round."""
        with trio.move_on_after(BOUND):
            try:
                if await operation():
                    self._stored[item] = self._clock()
            except MeshError as error:
                log.info("the hash table did not take this node's entry: %s", error.message)

    def _until_next(self) -> float:
        """To the next refresh, or a little into the next epoch, not all nodes at once."""
        epoch = EPOCH - self._clock() % EPOCH + self._rng.uniform(0, 300)
        return min(REFRESH * self._rng.uniform(0.9, 1.1), epoch)


def _texts(announcement: Announcement) -> list[str]:
    names = [offer.card.name for offer in announcement.offers]
    return list(dict.fromkeys([*names, *(offer.model_id for offer in announcement.offers)]))
