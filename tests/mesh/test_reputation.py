from __future__ import annotations

import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import Usage
from llmesh.core.model import Card
from llmesh.core.ranking import Candidate, Measured, Trust
from llmesh.mesh.reputation import Reputation, ReputationSettings

ANN, BOB = PeerId("ann"), PeerId("bob")
MODEL, OTHER = ModelId("a" * 64), ModelId("b" * 64)


def candidate(peer: PeerId = ANN, model: ModelId = MODEL) -> Candidate:
    return Candidate(peer, (), Offer(model, Card("senti"), "echo", Amount(0)), Amount(0), Amount(0))


def reputation(remembered: int = 100, *down: PeerId) -> Reputation:
    return Reputation(frozenset(down).__contains__, ReputationSettings(remembered=remembered))


def trust(of: Reputation, peer: PeerId = ANN) -> Trust:
    return of.measured(candidate(peer)).trust


async def stands_back(of: Reputation) -> float:
    """Seconds until the peer is good again."""
    start = trio.current_time()
    while trust(of) is not Trust.GOOD:  # noqa: ASYNC110  (standing is a matter of time alone)
        await trio.sleep(0.25)
    return trio.current_time() - start


async def test_a_stranger_is_good_and_unmeasured() -> None:
    assert reputation().measured(candidate()) == Measured()


async def test_failures_in_a_row_double_the_pause_up_to_a_bound(autojump_clock: MockClock) -> None:
    known = reputation()
    pauses = []
    for _ in range(5):
        known.failed(ANN)
        assert trust(known) is Trust.FAILING
        pauses.append(await stands_back(known))
    assert pauses == [1, 2, 4, 8, 8]
    assert trust(known, BOB) is Trust.GOOD


async def test_an_answer_forgives_failures(autojump_clock: MockClock) -> None:
    known = reputation()
    for _ in range(4):
        known.failed(ANN)
    known.answered(ANN, MODEL, 1.0, Usage())
    assert trust(known) is Trust.GOOD
    known.failed(ANN)
    assert await stands_back(known) == 1


async def test_a_bad_answer_outlasts_good_ones(autojump_clock: MockClock) -> None:
    known = reputation()
    known.disgraced(ANN)
    known.answered(ANN, MODEL, 0.1, Usage())
    assert trust(known) is Trust.DISGRACED
    assert await stands_back(known) == 60
    for _ in range(9):
        known.disgraced(ANN)
    assert await stands_back(known) == 3600


async def test_a_busy_peer_stands_back_for_what_it_asked_within_reason(autojump_clock: MockClock) -> None:
    known = reputation()
    for asked, pause in ((3.0, 3.0), (1e9, 8.0), (None, 0.0), (-5.0, 0.0)):
        known.busy(ANN, asked)
        assert await stands_back(known) == pause
    assert known.measured(candidate()).load == 1.0
    known.accepted(ANN, 0.25)
    assert known.measured(candidate()).load == 0.25


async def absence(of: Reputation) -> float:
    """Seconds until the peer is no longer absent."""
    start = trio.current_time()
    while of.absent(ANN):  # noqa: ASYNC110  (standing is a matter of time alone)
        await trio.sleep(0.25)
    return trio.current_time() - start


async def test_who_never_answered_is_absent_for_longer_after_a_failure(autojump_clock: MockClock) -> None:
    known = reputation()
    assert not known.absent(ANN)
    times = []
    for _ in range(8):
        known.failed(ANN)
        times.append(await absence(known))
    assert times == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    known.answered(ANN, MODEL, 1.0, Usage())
    known.failed(ANN)
    assert await absence(known) == 1
    known.failed(ANN)
    known.answered(ANN, MODEL, 1.0, Usage())
    assert not known.absent(ANN)


async def test_the_down_and_the_disgraced_are_absent_and_the_busy_are_not() -> None:
    assert reputation(100, ANN).absent(ANN)
    known = reputation()
    known.busy(ANN, 5.0)
    assert not known.absent(ANN)
    known.disgraced(ANN)
    assert known.absent(ANN)


async def test_speed_is_kept_per_model_and_follows_slowly() -> None:
    known = reputation()
    known.answered(ANN, MODEL, 1.0, Usage(output_tokens=100))
    known.answered(ANN, OTHER, 50.0, Usage())
    assert known.measured(candidate()).latency == 1.0
    assert known.measured(candidate()).throughput == 100.0
    known.answered(ANN, MODEL, 2.0, Usage(output_tokens=200))
    latency = known.measured(candidate()).latency
    assert latency is not None
    assert 1.0 < latency < 2.0
    assert known.measured(candidate(BOB)).latency is None


async def test_a_deadline_that_passed_counts_only_against_a_peer() -> None:
    known = reputation()
    known.answered(ANN, MODEL, 1.0, Usage())
    known.late(ANN, MODEL, 0.05)
    assert known.measured(candidate()).latency == 1.0
    known.late(ANN, MODEL, 30.0)
    known.late(BOB, MODEL, 30.0)
    assert (known.measured(candidate()).latency or 0) > 5
    assert known.measured(candidate(BOB)).latency == 30.0


async def test_attempts_under_way_are_counted_while_they_are() -> None:
    known = reputation()
    with known.asking(ANN), known.asking(ANN):
        assert known.measured(candidate()).under_way == 2
    assert known.measured(candidate()).under_way == 0
    assert not known._under_way


async def test_what_discovery_takes_for_dead_is_down_unless_worse() -> None:
    known = reputation(100, ANN)
    assert trust(known) is Trust.DOWN
    known.failed(ANN)
    assert trust(known) is Trust.DOWN
    known.disgraced(ANN)
    assert trust(known) is Trust.DISGRACED


async def test_memory_is_bounded_and_keeps_the_latest() -> None:
    known = reputation(3)
    for number in range(10):
        peer = PeerId(str(number))
        known.failed(peer)
        known.answered(peer, MODEL, 1.0, Usage())
        known.failed(peer)
        known.failed(PeerId("0"))
    assert len(known._standings) == len(known._speeds) == 3
    assert trust(known, PeerId("0")) is trust(known, PeerId("9")) is Trust.FAILING
    assert trust(known, PeerId("5")) is Trust.GOOD
