"""Directories come to hold the same, and only what the other lacks travels."""

from __future__ import annotations

import hashlib
from functools import cache
from random import Random

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh import crypto
from llmesh.core.amount import Amount
from llmesh.core.announcement import DOMAIN, Announcement, Offer, SignedAnnouncement, sign_announcement
from llmesh.core.directory import Cursor, Directory
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.query import Answer, Get, Hint, Record, Search, Sync
from llmesh.core.reconcile import BATCH, Learnt, answer, changes_to_name, news_of, take
from llmesh.errors import ValidationFailed

NOW = 1_700_000_000


@cache
def signed(number: int, sequence: int = 1) -> SignedAnnouncement:
    seed = hashlib.sha256(f"{number}".encode()).digest()
    peer = PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed).verify_key)))
    offer = Offer(ModelId("a" * 64), Card("senti", description="x" * 300), "text-classification", Amount(1))
    announcement = Announcement(
        peer, sequence, ("/ip4/192.0.2.7/tcp/1",), (offer,), Amount(0), NOW, NOW + 1800
    )
    return sign_announcement(announcement, lambda payload: crypto.sign(seed, DOMAIN, payload), now=NOW)


class Side:
    """One node's half of a comparison, as `mesh.sync` keeps it."""

    def __init__(self, name: str, start: int) -> None:
        self.peer = PeerId(name)
        self.directory = Directory(self.peer, start)
        self.theirs: dict[PeerId, Cursor | None] = {}
        self.ours: dict[PeerId, Cursor] = {}
        self.travelled = 0

    def compare(self, other: Side) -> None:
        ours = self.directory.head
        known = changes_to_name(self.directory, self.ours.get(other.peer), NOW)
        query = Sync(self.theirs.get(other.peer), known)
        for part in list(answer(other.directory, query, self.peer, NOW)):
            self.travelled += len(part.records)
            for record in part.records:
                take(self.directory, record, other.peer, NOW)
            self.theirs[other.peer] = part.cursor
            for news in news_of(self.directory, part.wanted):
                self.travelled += len(news.records)
                for record in news.records:
                    take(other.directory, record, self.peer, NOW)
        self.ours[other.peer] = ours

    def holds(self) -> set[SignedAnnouncement]:
        return {record for _, _, record in self.directory.changes(None, NOW)}


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 3), st.integers(0, 3)), max_size=20)
)
def test_whatever_happened_before_one_comparison_makes_them_equal(
    steps: list[tuple[bool, int, int, int]],
) -> None:
    a, b = Side("a", 1), Side("b", 2)
    for at_a, number, sequence, then in steps:
        (a if at_a else b).directory.add(signed(number, sequence), NOW)
        if then == 1:
            a.compare(b)
        elif then == 2:
            b.compare(a)
    a.compare(b)
    assert a.holds() == b.holds()


def test_nothing_travels_twice() -> None:
    a, b = Side("a", 1), Side("b", 2)
    for number in range(10):
        (a if number < 4 else b).directory.add(signed(number), NOW)
    for _ in range(3):
        a.compare(b)
        b.compare(a)
    assert (a.travelled, b.travelled) == (10, 0)
    a.directory.add(signed(0, 2), NOW)
    b.compare(a)
    a.compare(b)
    assert (a.travelled, b.travelled) == (10, 1)


def test_a_comparison_at_rest_is_a_few_bytes() -> None:
    a, b = Side("a", 1), Side("b", 2)
    a.compare(b)
    a.directory.add(signed(1), NOW)
    assert changes_to_name(a.directory, a.ours[b.peer], NOW) == (signed(1).signature[:8],)
    a.compare(b)
    a.compare(b)
    assert changes_to_name(a.directory, a.ours[b.peer], NOW) == ()
    assert list(answer(b.directory, Sync(a.theirs[b.peer]), a.peer, NOW)) == [Answer(cursor=b.directory.head)]


def test_who_lost_everything_gets_its_own_gifts_back() -> None:
    a, b = Side("a", 1), Side("b", 2)
    a.directory.add(signed(1), NOW)
    a.compare(b)
    reborn = Side("a", 3)
    reborn.compare(b)
    assert reborn.holds() == {signed(1)}


@pytest.mark.parametrize(("count", "degree", "seed"), [(60, 8, 1), (60, 8, 2), (60, 3, 3), (20, 8, 4)])
def test_sixty_directories_converge_in_eight_rounds(count: int, degree: int, seed: int) -> None:
    """One comparison a node and round with a random one of a few peers, and nothing else."""
    rng = Random(seed)
    sides = [Side(f"{number}", number) for number in range(count)]
    peers = {side.peer: rng.sample([s for s in sides if s is not side], degree) for side in sides}
    for number, side in enumerate(sides):
        side.directory.add(signed(number), NOW)
    for _ in range(8):
        for side in rng.sample(sides, count):
            side.compare(rng.choice(peers[side.peer]))
    assert all(len(side.directory) == count for side in sides)
    assert sum(side.travelled for side in sides) == count * (count - 1), "each record once to each node"


def test_long_answers_come_in_messages_that_fit_and_can_be_broken_off() -> None:
    directory = Directory(PeerId("b"), 2)
    for number in range(150):
        directory.add(signed(number), NOW)
    parts = list(answer(directory, Sync(), PeerId("a"), NOW))
    assert len(parts) > 2
    assert all(sum(len(r.payload) for r in part.records) <= BATCH for part in parts)
    first, *_ = parts
    rest = [r for part in answer(directory, Sync(first.cursor), PeerId("a"), NOW) for r in part.records]
    assert len(first.records) + len(rest) == 150
    assert not set(first.records) & set(rest)


def test_search_and_get() -> None:
    directory = Directory(PeerId("b"), 2)
    for number in range(3):
        directory.add(signed(number, 5), NOW)
    found = [r for part in answer(directory, Search("SENT", limit=2), PeerId("a"), NOW) for r in part.records]
    assert len(found) == 2
    assert list(answer(directory, Search("gpt"), PeerId("a"), NOW)) == []
    peer = signed(1, 5).announcement.peer_id
    assert list(answer(directory, Get((Hint(peer, 6),)), PeerId("a"), NOW)) == []
    wanted = Get((Hint(peer, 4), Hint(PeerId("nobody"), 1)))
    assert list(answer(directory, wanted, PeerId("a"), NOW)) == [Answer((Record.of(signed(1, 5)),))]


def test_only_what_is_newer_and_genuine_is_taken() -> None:
    directory, giver = Directory(PeerId("b"), 2), PeerId("a")
    assert take(directory, Record.of(signed(1, 2)), giver, NOW) == Learnt(signed(1, 2), renewal=False)
    assert take(directory, Record.of(signed(1, 2)), giver, NOW) is None
    assert take(directory, Record.of(signed(1, 1)), giver, NOW) is None, "a replay of what it replaced"
    forged = Record(signed(1, 3).payload, signed(1, 2).signature)
    for bad in (forged, Record(b"{}", b""), Record(b"[" * 50_000, b"")):
        with pytest.raises(ValidationFailed):
            take(directory, bad, giver, NOW)
    with pytest.raises(ValidationFailed, match="expired"):
        take(directory, Record.of(signed(2)), giver, NOW + 1800)
    assert take(directory, Record.of(signed(1, 3)), giver, NOW) == Learnt(
        signed(1, 3), renewal=True, before=signed(1, 2)
    )
    assert len(directory) == 1
