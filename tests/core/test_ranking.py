from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.ranking import MAX_SKIPPED, Candidate, Measured, Trust, eligible, most_bonded, rank
from llmesh.core.reference import ModelRef
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import ModelNotFound

A, B, C = (ModelId(letter * 64) for letter in "abc")
OWN = PeerId("me")


def offer(model: ModelId = A, version: str = "1.0.0", fee: int = 0) -> Offer:
    return Offer(model, Card("senti", version), "text-classification", Amount(fee))


def announced(peer: str, stake: int, model: ModelId, version: str = "1.0.0") -> tuple[Offer, Announcement]:
    made = offer(model, version)
    return made, Announcement(PeerId(peer), 1, (), (made,), Amount(stake), 0, 100)


def candidate(peer: str, fee: int = 0, stake: int = 0) -> Candidate:
    return Candidate(PeerId(peer), (), offer(fee=fee), Amount(stake), Amount(fee))


def names(candidates: Iterable[Candidate]) -> list[str]:
    return [c.peer_id for c in candidates]


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([], None),
        ([announced("p", 5, A), announced("q", 9, B)], B),
        ([announced("p", 5, A), announced("q", 5, A), announced("r", 9, B)], A),
        ([announced("p", 10, B), announced("q", 5, A), announced("r", 5, A)], A),
        ([announced("p", 5, C), announced("q", 5, B)], B),
        # one peer that lists a model twice has bonded its stake once
        ([announced("p", 5, A), announced("p", 5, A), announced("q", 9, B)], B),
    ],
)
def test_a_name_means_the_model_with_most_stake(
    offers: list[tuple[Offer, Announcement]], chosen: ModelId | None
) -> None:
    assert most_bonded(ModelRef("senti"), offers) == chosen


def test_a_version_filters() -> None:
    offers = [announced("p", 9, A, "1.0.0"), announced("q", 5, B, "2.0.0")]
    assert most_bonded(ModelRef("senti", "2.0.0"), offers) == B
    assert most_bonded(ModelRef("senti", "3.0.0"), offers) is None


def test_wishes_exclude() -> None:
    known = [candidate("p", 1, 10), candidate("q", 2, 20), candidate("r", 3, 30), candidate(OWN)]
    wishes = Wishes(min_stake=Amount(20), deny=frozenset({PeerId("r")}))
    plan = eligible(known, None, wishes, OWN)
    assert names(plan.candidates) == ["q", OWN]
    assert [(s.peer_id, s.code) for s in plan.skipped] == [("p", 1002), ("r", 1001)]
    only = eligible(known, None, Wishes(allow=frozenset({PeerId("p")})), OWN)
    assert names(only.candidates) == ["p"]
    assert [s.peer_id for s in only.skipped] == ["q", "r", OWN]
    cheap = eligible(known, Amount(2), Wishes(), OWN)
    assert names(cheap.candidates) == ["p", "q", OWN]
    assert [s.reason for s in cheap.skipped] == [
        "It asks 0.000003 MESH, more than the max_fee of 0.000002 MESH."
    ]


def test_only_so_many_are_named_as_passed_over() -> None:
    known = [candidate(str(n), fee=n) for n in range(1000)]
    plan = eligible(known, Amount(0), Wishes(), OWN)
    assert (names(plan.candidates), len(plan.skipped)) == (["0"], MAX_SKIPPED)


def test_what_excluded_all_is_said() -> None:
    known = [candidate("p", 300_000), candidate("q", 200_000)]
    with pytest.raises(ModelNotFound, match=r"cheapest offer of senti costs 0\.2 MESH.* 0\.1 MESH"):
        eligible(known, Amount(100_000), Wishes(), OWN)
    with pytest.raises(ModelNotFound, match="None of the 2 known providers of senti"):
        eligible(known, None, Wishes(min_stake=Amount(1)), OWN)


MEASURED = {
    "cheap": Measured(latency=4.0, throughput=10.0),
    "quick": Measured(latency=0.1, throughput=20.0),
    "broad": Measured(latency=1.0, throughput=900.0),
}
FEES = {"cheap": 1, "quick": 3, "broad": 2}


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.PRICE, ["cheap", "broad", "quick"]),
        (Sort.LATENCY, ["quick", "broad", "cheap"]),
        (Sort.THROUGHPUT, ["broad", "quick", "cheap"]),
    ],
)
def test_the_wish_decides_the_order(sort: Sort, order: list[str]) -> None:
    known = [candidate(name, fee) for name, fee in FEES.items()]
    assert names(rank(known, lambda c: MEASURED[c.peer_id], sort, Random(1).random)) == order


@pytest.mark.parametrize("sort", Sort)
def test_trust_comes_before_every_wish(sort: Sort) -> None:
    known = [candidate(trust.name, 10 - trust) for trust in reversed(Trust)]
    ranked = rank(
        known,
        lambda c: Measured(trust=Trust[c.peer_id], latency=9.0 - Trust[c.peer_id]),
        sort,
        Random(1).random,
    )
    assert names(ranked) == ["GOOD", "FAILING", "DOWN", "DISGRACED"]


def test_load_and_own_attempts_make_a_peer_slower() -> None:
    measured = {
        "idle": Measured(latency=1.0),
        "full": Measured(latency=1.0, load=1.0),
        "asked": Measured(latency=1.0, under_way=8),
    }
    known = [candidate(name) for name in ("asked", "full", "idle")]
    assert names(rank(known, lambda c: measured[c.peer_id], Sort.PRICE, Random(1).random)) == [
        "idle",
        "full",
        "asked",
    ]


def test_equals_share_the_load() -> None:
    known = [candidate("p"), candidate("q")]
    near = {"p": Measured(latency=0.101), "q": Measured(latency=0.11)}
    rng = Random(7).random
    firsts = Counter(rank(known, lambda c: near[c.peer_id], Sort.PRICE, rng)[0].peer_id for _ in range(400))
    assert min(firsts.values()) > 120


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100), st.floats(0, 1e9), st.floats(0, 1)), max_size=8),
    st.sampled_from(Sort),
)
def test_nobody_is_lost(peers: list[tuple[int, float, float, float]], sort: Sort) -> None:
    known = [candidate(str(n), fee) for n, (fee, _, _, _) in enumerate(peers)]
    data = {str(n): Measured(latency=w, throughput=t, load=load) for n, (_, w, t, load) in enumerate(peers)}
    ranked = rank(known, lambda c: data[c.peer_id], sort, Random(0).random)
    assert sorted(names(ranked)) == sorted(names(known))
