"""The directory keeps the newest of each peer, within bounds, and tells its changes in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer, SignedAnnouncement
from llmesh.core.directory import Bounds, Cursor, Directory, Verdict, fingerprint, neighbourhood
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef

NOW = 1_700_000_000
ME = PeerId("me")


def offer(name: str = "senti", fee: int = 1, model: str = "a", version: str = "1") -> Offer:
    return Offer(ModelId(model * 64), Card(name, version), "text-classification", Amount(fee))


def record(
    peer: str,
    sequence: int = 1,
    *offers: Offer,
    stake: int = 0,
    lives: int = 1800,
    address: str = "/ip4/192.0.2.7/tcp/1",
) -> SignedAnnouncement:
    """A record as if verified; the directory never looks at signatures, only tells them apart."""
    announcement = Announcement(PeerId(peer), sequence, (address,), offers, Amount(stake), NOW, NOW + lives)
    return SignedAnnouncement(b"x" * 300, f"{peer}.{sequence}".encode().rjust(64, b"-")[::-1], announcement)


def peers(pairs: list[tuple[Offer, Announcement]]) -> list[str]:
    return [announcement.peer_id for _, announcement in pairs]


def test_the_highest_sequence_wins() -> None:
    directory = Directory(ME, 1)
    assert directory.add(record("p", 5, offer()), NOW) is Verdict.NEW
    assert directory.add(record("p", 5, offer()), NOW) is Verdict.KNOWN
    assert directory.add(record("p", 4, offer(), offer("old")), NOW) is Verdict.STALE
    assert directory.add(record("p", 6), NOW) is Verdict.NEW
    assert directory.lookup(ModelRef("senti"), NOW) == []
    assert len(directory) == 1


def test_an_expired_record_is_neither_taken_nor_found() -> None:
    directory = Directory(ME, 1)
    assert directory.add(record("p", 1, offer(), lives=-1), NOW) is Verdict.REFUSED
    directory.add(record("p", 1, offer(), lives=10), NOW)
    assert directory.get(PeerId("p"), NOW + 9) is not None
    for late in (directory.get(PeerId("p"), NOW + 10), *directory.lookup(ModelRef("senti"), NOW + 10)):
        assert late is None
    assert directory.changes(None, NOW + 10) == []
    directory.expire(NOW + 10)
    assert len(directory) == directory.offer_count == 0


def test_a_replaced_record_cannot_come_back_after_its_successor() -> None:
    directory = Directory(ME, 1)
    directory.add(record("p", 1, offer(), lives=1000), NOW)
    directory.add(record("p", 2, lives=10), NOW)
    directory.expire(NOW + 11)
    assert directory.add(record("p", 1, offer(), lives=1000), NOW + 11) is Verdict.STALE
    directory.expire(NOW + 1000)
    assert len(directory) == 0


def test_lookup_takes_every_form_of_a_reference() -> None:
    directory = Directory(ME, 1)
    directory.add(record("p", 1, offer(model="a"), offer(model="b", version="2")), NOW)
    directory.add(record("q", 1, offer("other", model="a")), NOW)
    found = {
        text: sorted(peers(directory.lookup(ModelRef.parse(text), NOW)))
        for text in ("senti", "senti:2", "senti:3", "a" * 64, f"senti@{'b' * 64}", "Senti", "sent")
    }
    assert found == {
        "senti": ["p", "p"], "senti:2": ["p"], "senti:3": [], "a" * 64: ["p", "q"],
        f"senti@{'b' * 64}": ["p"], "Senti": [], "sent": [],
    }  # fmt: skip


def test_search_by_part_of_a_name_price_and_model() -> None:
    directory = Directory(ME, 1)
    directory.add(record("dear", 1, offer("Sentiment", fee=9)), NOW)
    directory.add(record("cheap", 1, offer("sentiment-v2", fee=1, model="b")), NOW)
    directory.add(record("rich", 1, offer("sentiment-v2", fee=1), stake=5), NOW)
    directory.add(record("other", 1, offer("gpt")), NOW)
    assert peers(directory.search("SENTI", None, 9, NOW)) == ["dear", "rich", "cheap"]
    assert peers(directory.search("sentiment-v2", None, 9, NOW)) == ["rich", "cheap"]
    assert peers(directory.search("senti", Amount(1), 9, NOW)) == ["rich", "cheap"]
    assert peers(directory.search("senti", None, 1, NOW)) == ["dear"]
    assert peers(directory.search("", None, 9, NOW, ModelId("b" * 64))) == ["cheap"]
    assert len(directory.search("", None, 9, NOW)) == 4


def test_a_crowd_of_similar_names_does_not_hide_the_exact_one() -> None:
    directory = Directory(ME, 1)
    for n in range(50):
        directory.add(record(f"squatter{n}", 1, offer(f"a-senti-{n}")), NOW)
    directory.add(record("true", 1, offer("senti")), NOW)
    assert peers(directory.search("senti", None, 3, NOW))[0] == "true"


def test_changes_since_a_cursor() -> None:
    directory = Directory(ME, 1)
    directory.add(record("p", 1, offer()), NOW, PeerId("giver"))
    seen = directory.head
    directory.add(record("q", 1, offer()), NOW)
    directory.add(record("p", 2, offer()), NOW)
    changed = [
        (giver, r.announcement.peer_id, r.announcement.sequence)
        for _, giver, r in directory.changes(seen, NOW)
    ]
    assert changed == [("q", "q", 1), ("p", "p", 2)]
    assert directory.changes(directory.head, NOW) == []
    assert len(directory.changes(None, NOW)) == 2
    assert len(directory.changes(Cursor(2, 99), NOW)) == 2, "a cursor of another life counts for nothing"


def test_one_neighbourhood_gets_a_bounded_part() -> None:
    directory = Directory(ME, 1, Bounds(peers_per_neighbourhood=2))
    here, there = "/ip4/192.0.2.{}/tcp/1", "/ip4/198.51.100.1/tcp/1"
    assert directory.add(record("a", address=here.format(1)), NOW) is Verdict.NEW
    assert directory.add(record("b", address=here.format(2)), NOW) is Verdict.NEW
    assert directory.add(record("c", address=here.format(3)), NOW) is Verdict.REFUSED
    assert directory.add(record("d", address=there), NOW) is Verdict.NEW
    assert directory.add(record("d", 2, address=here.format(4)), NOW) is Verdict.REFUSED, (
        "by moving in neither"
    )
    assert directory.add(record("a", 2, address=here.format(9)), NOW) is Verdict.NEW
    assert directory.add(record("b", 2, address=there), NOW) is Verdict.NEW
    assert directory.add(record("c", address=here.format(3)), NOW) is Verdict.NEW


@pytest.mark.parametrize(
    ("address", "area"),
    [
        ("/ip4/192.0.2.77/tcp/1", "192.0.2.0/24"),
        ("/ip6/2001:db8:1:2::3/tcp/1", "2001:db8:1::/48"),
        ("/dns4/node.example/tcp/1", "node.example"),
        ("/ip4/300.1.1.1/tcp/1", "300.1.1.1"),
        ("/memory", ""),
    ],
)
def test_neighbourhoods(address: str, area: str) -> None:
    assert neighbourhood(address) == area


def test_what_is_in_use_stays_and_the_least_staked_goes_first() -> None:
    directory = Directory(ME, 1, Bounds(offers=4))
    for peer, stake in (("session", 0), ("looked-up", 0), ("poor", 1), ("rich", 9)):
        directory.add(record(peer, 1, offer(peer), stake=stake), NOW)
    directory.in_use.add(PeerId("session"))
    directory.lookup(ModelRef("looked-up"), NOW)
    assert directory.add(record("beggar", 1, offer(), stake=0), NOW) is Verdict.REFUSED
    assert directory.add(record("new", 1, offer(), stake=5), NOW) is Verdict.NEW
    assert {a.peer_id for a in directory.providers(NOW)} == {"session", "looked-up", "rich", "new"}
    assert directory.add(record("new2", 1, offer(), offer("x"), stake=5), NOW) is Verdict.REFUSED
    assert len(directory) == 4, "a refused record displaces nobody"
    assert directory.add(record(ME, 1, offer()), NOW) is Verdict.NEW, "our own displaces the richest"


def test_bytes_are_bounded_too() -> None:
    directory = Directory(ME, 1, Bounds(size=10_000))
    verdicts = [directory.add(record(f"p{n}", stake=1), NOW) for n in range(50)]
    assert verdicts.count(Verdict.NEW) == 50, "the oldest made room"
    assert 2 <= len(directory) <= 10


class Model(RuleBasedStateMachine):
    """Against a plain dictionary of the newest record of each peer."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory(ME, 1, Bounds(offers=12, size=60_000, peers_per_neighbourhood=4))
        self.directory.in_use |= {PeerId("p0"), PeerId("p1")}
        self.now = NOW
        self.taken: dict[str, SignedAnnouncement] = {}
        self.position = 0

    @rule(
        peer=st.integers(0, 9),
        sequence=st.integers(1, 6),
        names=st.lists(st.sampled_from("abc"), max_size=3, unique=True),
        stake=st.integers(0, 3),
        lives=st.integers(1, 60),
        area=st.integers(0, 2),
    )
    def add(self, peer: int, sequence: int, names: list[str], stake: int, lives: int, area: int) -> None:
        offers = [offer(name) for name in names]
        address = f"/ip4/10.0.{area}.1/tcp/1"
        new = record(f"p{peer}", sequence, *offers, stake=stake, address=address)
        new = replace(new, announcement=replace(new.announcement, expires_at=self.now + lives))
        before = self.directory.changes(None, self.now)
        verdict = self.directory.add(new, self.now)
        if verdict is Verdict.NEW:
            self.taken[f"p{peer}"] = new
            assert self.directory.get(PeerId(f"p{peer}"), self.now) == new
            assert self.directory.changes(None, self.now)[-1][2] == new
        else:
            assert self.directory.changes(None, self.now) == before
            if verdict is not Verdict.REFUSED:
                assert self.directory.held(PeerId(f"p{peer}")) is not None

    @rule(seconds=st.integers(0, 1000))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.directory.expire(self.now)

    @invariant()
    def it_is_within_bounds_and_consistent(self) -> None:
        valid = self.directory.changes(None, self.now)
        positions = [position for position, _, _ in valid]
        assert positions == sorted(set(positions))
        for _, _, held in valid:
            assert held == self.taken[held.announcement.peer_id], "only the newest that was taken"
            assert held.announcement.expires_at > self.now
            assert self.directory.by_fingerprint(fingerprint(held)) == held
        offered = [(o, a) for _, _, r in valid for a in [r.announcement] for o in a.offers]
        assert self.directory.offer_count <= 12
        for name in "abc":
            expected = {a.peer_id for o, a in offered if o.card.name == name}
            assert {a.peer_id for _, a in self.directory.search(name, None, 99, self.now)} == expected
        areas = [a for _, _, r in valid for a in r.announcement.addresses]
        assert all(areas.count(address) <= 4 for address in areas)

    @invariant()
    def what_is_in_use_is_never_displaced(self) -> None:
        for peer in ("p0", "p1"):
            taken = self.taken.get(peer)
            if taken is not None and taken.announcement.expires_at > self.now:
                assert self.directory.get(PeerId(peer), self.now) == taken


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30), st.integers(0, 30))
def test_following_the_cursor_gives_the_same_directory(steps: list[tuple[int, int]], pause: int) -> None:
    here, there = Directory(ME, 1), Directory(PeerId("you"), 2)
    cursor = None
    for number, (peer, sequence) in enumerate(steps):
        here.add(record(f"p{peer}", sequence, offer()), NOW)
        if number in (pause, len(steps) - 1):
            for _, _, changed in here.changes(cursor, NOW):
                there.add(changed, NOW)
            cursor = here.head
    assert {r for _, _, r in here.changes(None, NOW)} == {r for _, _, r in there.changes(None, NOW)}
