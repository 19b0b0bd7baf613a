"""The order in which frames leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.outbox import BATCH, SMALL, Outbox

LARGE = 65_000


def frame(call: int, number: int, size: int) -> bytes:
    return b"%d:%d;" % (call, number) + b"." * size


def drain(outbox: Outbox) -> list[bytes]:
    batches = []
    while batch := outbox.batch():
        batches.append(batch)
    return batches


def labels(batches: list[bytes]) -> list[tuple[int, int]]:
    texts = [t.strip(b".") for t in b"".join(batches).split(b";")][:-1]
    return [(int(a), int(b)) for a, b in (t.split(b":") for t in texts)]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 500, LARGE]), st.booleans()), max_size=60))
def test_calls_keep_their_order_and_nothing_is_lost(steps: list[tuple[int, int, bool]]) -> None:
    outbox, counts, out = Outbox(), dict.fromkeys(range(5), 0), []
    for call, size, write in steps:
        outbox.add(call, frame(call, counts[call], size))
        counts[call] += 1
        if write:
            out.append(outbox.batch())
    out += drain(outbox)
    assert all(len(batch) <= BATCH for batch in out)
    assert outbox.size == 0
    for call, count in counts.items():
        assert [n for c, n in labels(out) if c == call] == list(range(count))


def test_small_frames_go_together_and_take_turns_with_large_pieces() -> None:
    outbox = Outbox()
    for n in range(3):
        outbox.add(1, frame(1, n, LARGE))
    for n in range(4):
        outbox.add(2, frame(2, n, 10))
    first, second = outbox.batch(), outbox.batch()
    assert labels([first]) == [(2, 0), (2, 1), (2, 2), (2, 3)]
    assert labels([second]) == [(1, 0), (1, 1)]
    outbox.add(2, frame(2, 4, 10))
    assert labels(drain(outbox)) == [(2, 4), (1, 2)]


def test_a_small_frame_goes_before_the_later_pieces_of_its_call() -> None:
    outbox = Outbox()
    outbox.add(1, frame(1, 0, LARGE))
    outbox.add(2, frame(2, 0, 10))
    outbox.add(2, frame(2, 1, LARGE))
    assert [labels([batch]) for batch in drain(outbox)] == [[(2, 0)], [(1, 0), (2, 1)]]
    outbox.add(1, frame(1, 1, LARGE))
    assert labels([outbox.batch()]) == [(1, 1)]
    outbox.add(1, frame(1, 2, LARGE))
    for n in (2, 3):
        outbox.add(2, frame(2, n, 10))
    outbox.add(2, frame(2, 4, LARGE))
    assert labels(drain(outbox)) == [(2, 2), (2, 3), (1, 2), (2, 4)]


def test_a_stream_of_small_frames_does_not_starve_large_ones() -> None:
    outbox = Outbox()
    outbox.add(1, frame(1, 0, LARGE))
    written = []
    for n in range(3):
        outbox.add(2, frame(2, n, 10))
        written.append(outbox.batch())
    assert (1, 0) in labels(written)


def test_large_calls_take_turns() -> None:
    outbox = Outbox()
    for call in (1, 2):
        for n in range(3):
            outbox.add(call, frame(call, n, LARGE))
    assert [call for call, _ in labels(drain(outbox))] == [1, 2, 1, 2, 1, 2]


def test_dropping_a_call_gives_back_what_its_pieces_cost() -> None:
    outbox = Outbox()
    outbox.add(1, frame(1, 0, LARGE), cost=7)
    outbox.add(1, frame(1, 1, 10), cost=5)
    outbox.add(2, frame(2, 0, SMALL), cost=3)
    assert outbox.drop(1) == 12
    assert outbox.drop(1) == 0
    assert labels(drain(outbox)) == [(2, 0)]
    assert outbox.size == 0
