"""Directory: this node's view of all valid announcements, bounded and indexed.  No I/O, no clock.

It takes records that were verified already, keeps the newest of each peer, and lists its changes in
order, so that a peer that has seen them up to a cursor gets only what came after.  `now` is seconds
since 1970.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address, ip_network
from itertools import chain, takewhile
from typing import TypeVar

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer, SignedAnnouncement
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.reference import ModelRef

__all__ = ["Bounds", "Cursor", "Directory", "Verdict", "fingerprint", "neighbourhood"]

RECENT = 600.0
"""Seconds for which an announcement that a lookup returned counts as in use."""
FINGERPRINT_BYTES = 8
# What the parsed form and the indexes of a record take beside its payload, measured on CPython 3.11.
_ENTRY_COST = 900
_OFFER_COST = 1100
# Making room frees this share at once, so that a flood does not sort the whole table at each record.
_ROOM = 0.05


class Verdict(Enum):
    """What became of a record that was offered."""

    NEW = auto()
    KNOWN = auto()
    STALE = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in one directory's list of changes; `start` names that directory's life."""

    start: int
    position: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a directory holds; `size` in bytes."""

    offers: int = 20_000
    size: int = 32 << 20
    peers_per_neighbourhood: int = 256


@dataclass(slots=True)
class _Entry:
    record: SignedAnnouncement
    position: int
    giver: PeerId
    used_at: float
    # A replaced record may outlive its successor; until then it must not come back.
    keep_until: int

    @property
    def announcement(self) -> Announcement:
        return self.record.announcement

    @property
    def offers(self) -> int:
        return len(self.announcement.offers)

    @property
    def cost(self) -> int:
        return len(self.record.payload) + _ENTRY_COST + _OFFER_COST * self.offers


class Directory:
    """The newest announcement of every peer, found by peer, model, name and time of change."""

    def __init__(self, own: PeerId, start: int, bounds: Bounds | None = None) -> None:
        self.own = own
        self.bounds = bounds or Bounds()
        self.in_use: set[PeerId] = {own}
        """Peers whose announcements are never dropped to make room: ourselves, and live sessions."""
        self._start = start
        self._position = 0
        self._entries: dict[PeerId, _Entry] = {}  # in the order of their positions
        self._fingerprints: dict[bytes, PeerId] = {}
        self._by_name: defaultdict[str, set[PeerId]] = defaultdict(set)
        self._by_model: defaultdict[ModelId, set[PeerId]] = defaultdict(set)
        self._peers_in: Counter[str] = Counter()
        self._offers = 0
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def head(self) -> Cursor:
        """After the newest change."""
        return Cursor(self._start, self._position)

    @property
    def offer_count(self) -> int:
        """Offers held, expired ones included until `expire`."""
        return self._offers

    def judge(self, peer: PeerId, sequence: int) -> Verdict:
        """What `add` would say of a record by its author and sequence number alone; NEW: it looks wanted."""
        entry = self._entries.get(peer)
        if entry is None or sequence > entry.announcement.sequence:
            return Verdict.NEW
        return Verdict.KNOWN if sequence == entry.announcement.sequence else Verdict.STALE

    def add(self, record: SignedAnnouncement, now: float, giver: PeerId | None = None) -> Verdict:
        """Take a verified record that `giver` sent; REFUSED and STALE ones change nothing."""
        announcement = record.announcement
        verdict = self.judge(announcement.peer_id, announcement.sequence)
        if verdict is not Verdict.NEW:
            return verdict
        if announcement.expires_at <= now or not self._admits(announcement):
            return Verdict.REFUSED
        newcomer = self._newcomer(record, now, giver or announcement.peer_id)
        if not self._make_room(newcomer, now):
            return Verdict.REFUSED
        if announcement.peer_id in self._entries:
            self._remove(announcement.peer_id)
        self._position = newcomer.position
        self._insert(newcomer)
        return Verdict.NEW

    def get(self, peer: PeerId, now: float) -> SignedAnnouncement | None:
        """The peer's announcement, if it is still valid."""
        entry = self._entries.get(peer)
        return entry.record if entry is not None and entry.announcement.expires_at > now else None

    def held(self, peer: PeerId) -> SignedAnnouncement | None:
        """The newest announcement of the peer that we hold, valid or not."""
        entry = self._entries.get(peer)
        return entry.record if entry is not None else None

    def lookup(self, ref: ModelRef, now: float) -> list[tuple[Offer, Announcement]]:
        """Every valid offer that the reference names; what it returns counts as in use for a while."""
        peers = self._by_model.get(ref.id, ()) if ref.id else self._by_name.get(ref.name.casefold(), ())
        found = [pair for pair in self._pairs(peers, now) if _names(ref, pair[0])]
        for _, announcement in found:
            self._entries[announcement.peer_id].used_at = now
        return found

    def search(
        self, part: str, max_fee: Amount | None, limit: int, now: float, model: ModelId | None = None
    ) -> list[tuple[Offer, Announcement]]:
        """Valid offers whose name contains `part`, whatever the case, for at most `max_fee`.

        Those of exactly that name come first, then by name, fee, more stake; `model` asks for one.
        """
        wanted = part.casefold()
        named = (peers for name, peers in self._by_name.items() if wanted in name)
        peers = set(chain.from_iterable(named)) if model is None else self._by_model.get(model, set())
        found = [
            (offer, announcement)
            for offer, announcement in self._pairs(peers, now)
            if wanted in offer.card.name.casefold()
            and model in (None, offer.model_id)
            and (max_fee is None or offer.fee <= max_fee)
        ]
        return sorted(found, key=lambda pair: _search_order(wanted, *pair))[:limit]

    def providers(self, now: float) -> Iterator[Announcement]:
        """Every valid announcement that offers something, ours too."""
        return (
            entry.announcement
            for entry in self._entries.values()
            if entry.announcement.offers and entry.announcement.expires_at > now
        )

    def changes(self, since: Cursor | None, now: float) -> list[tuple[int, PeerId, SignedAnnouncement]]:
        """(position, giver, record) of what is valid and changed after the cursor, oldest first.

        A cursor of another start counts for nothing: all there is.
        """
        after = since.position if since is not None and since.start == self._start else 0
        newest_first = takewhile(lambda e: e.position > after, reversed(self._entries.values()))
        found = [
            (entry.position, entry.giver, entry.record)
            for entry in newest_first
            if entry.announcement.expires_at > now
        ]
        return found[::-1]

    def by_fingerprint(self, mark: bytes) -> SignedAnnouncement | None:
        """The record of this fingerprint, if it is held."""
        peer = self._fingerprints.get(mark)
        return self._entries[peer].record if peer is not None else None

    def expire(self, now: float) -> list[Announcement]:
        """Forget what is no longer valid and can no longer be replayed; what was forgotten."""
        over = [entry.announcement for entry in self._entries.values() if entry.keep_until <= now]
        for announcement in over:
            self._remove(announcement.peer_id)
        return over

    def _pairs(self, peers: Iterable[PeerId], now: float) -> Iterator[tuple[Offer, Announcement]]:
        for peer in peers:
            announcement = self._entries[peer].announcement
            if announcement.expires_at > now:
                yield from ((offer, announcement) for offer in announcement.offers)

    def _admits(self, announcement: Announcement) -> bool:
        """The rule that needs no room: not too many of one network neighbourhood."""
        if announcement.peer_id == self.own:
            return True
        before = self._entries.get(announcement.peer_id)
        areas = _areas(announcement) - (_areas(before.announcement) if before else set())
        return all(self._peers_in[area] < self.bounds.peers_per_neighbourhood for area in areas)

    def _newcomer(self, record: SignedAnnouncement, now: float, giver: PeerId) -> _Entry:
        before = self._entries.get(record.announcement.peer_id)
        keep_until = max(record.announcement.expires_at, before.keep_until if before else 0)
        used_at = before.used_at if before else -math.inf
        return _Entry(record, self._position + 1, giver, used_at, keep_until)

    def _make_room(self, newcomer: _Entry, now: float) -> bool:
        """Drop what is not in use and has no more stake, least staked and least recently used first."""
        before = self._entries.get(newcomer.announcement.peer_id)
        offers = self.bounds.offers - self._offers - newcomer.offers + (before.offers if before else 0)
        size = self.bounds.size - self._size - newcomer.cost + (before.cost if before else 0)
        if offers >= 0 and size >= 0:
            return True
        leaving: list[PeerId] = []
        for peer in self._idle(newcomer, now):
            leaving.append(peer)
            offers += self._entries[peer].offers
            size += self._entries[peer].cost
            if offers >= self.bounds.offers * _ROOM and size >= self.bounds.size * _ROOM:
                break
        if offers < 0 or size < 0:
            return False
        for peer in leaving:
            self._remove(peer)
        return True

    def _idle(self, newcomer: _Entry, now: float) -> list[PeerId]:
        """Whom the newcomer may displace, in this order."""
        peer, stake = newcomer.announcement.peer_id, newcomer.announcement.stake
        idle = (
            (entry.announcement.stake, entry.used_at, entry.position, other)
            for other, entry in self._entries.items()
            if other not in self.in_use and other != peer and entry.used_at < now - RECENT
            if peer in self.in_use or entry.announcement.stake <= stake
        )
        return [other for *_, other in sorted(idle)]

    def _insert(self, entry: _Entry) -> None:
        announcement = entry.announcement
        peer = announcement.peer_id
        self._entries[peer] = entry
        self._fingerprints[fingerprint(entry.record)] = peer
        for offer in announcement.offers:
            self._by_name[offer.card.name.casefold()].add(peer)
            self._by_model[offer.model_id].add(peer)
        self._peers_in.update(_areas(announcement))
        self._offers += entry.offers
        self._size += entry.cost

    def _remove(self, peer: PeerId) -> None:
        entry = self._entries.pop(peer)
        announcement = entry.announcement
        self._fingerprints.pop(fingerprint(entry.record), None)
        for offer in announcement.offers:
            _discard(self._by_name, offer.card.name.casefold(), peer)
            _discard(self._by_model, offer.model_id, peer)
        for area in _areas(announcement):
            self._peers_in[area] -= 1
            if not self._peers_in[area]:
                del self._peers_in[area]
        self._offers -= entry.offers
        self._size -= entry.cost


def fingerprint(record: SignedAnnouncement) -> bytes:
    """Eight bytes that tell one record from another: the head of its signature."""
    return record.signature[:FINGERPRINT_BYTES]


def neighbourhood(address: str) -> str:
    """The /24 (IPv4), /48 (IPv6) or host name that a multiaddr text lies in."""
    _, kind, host, *_ = f"{address}//".split("/")
    try:
        if kind in ("ip4", "ip6"):
            return str(ip_network((ip_address(host), 24 if kind == "ip4" else 48), strict=False))
    except ValueError:
        pass
    return host


def _areas(announcement: Announcement) -> set[str]:
    # All that announce no address share one.
    return {neighbourhood(address) for address in announcement.addresses} or {""}


def _names(ref: ModelRef, offer: Offer) -> bool:
    if ref.id is not None:
        return offer.model_id == ref.id
    return offer.card.name == ref.name and ref.version in ("", offer.card.version)


def _search_order(wanted: str, offer: Offer, announcement: Announcement) -> tuple[bool, str, int, int, str]:
    name = offer.card.name.casefold()
    return (name != wanted, name, offer.fee.micro, -announcement.stake.micro, announcement.peer_id)


_K = TypeVar("_K")


def _discard(index: defaultdict[_K, set[PeerId]], key: _K, peer: PeerId) -> None:
    peers = index.get(key)
    if peers is not None:
        peers.discard(peer)
        if not peers:
            del index[key]
