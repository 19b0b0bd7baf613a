"""The table of calls, driven by a model of a worker that may die at any step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import NodeBusy, ValidationFailed
from llmesh.runtime import calls as calls_module
from llmesh.runtime.answer import Answer
from llmesh.runtime.calls import OBEY_SECONDS, Call, Calls
from llmesh.runtime.orders import Alone, Event, Whole
from llmesh.runtime.pipe import Garbage, encode_order

WHOLE = Whole({}, Usage())


def call_of(number: int, size: int = 1) -> Call:
    return Call(number, bytes(size), Answer())


def table(*states: str) -> tuple[Calls, list[Call]]:
    """A table with calls in given states: new, sent, accepted, chunk."""
    calls, made = Calls(), [call_of(n) for n in range(1, len(states) + 1)]
    for call, state in zip(made, states, strict=True):
        calls.add(call)
        if state != "new":
            assert calls.next_frame() == call.frame
        if state in ("accepted", "chunk"):
            calls.note(call.number, Accepted(), 0.0)
        if state == "chunk":
            calls.note(call.number, Chunk(0), 0.0)
    return calls, made


def test_a_call_is_answered() -> None:
    calls, (call,) = table("new")
    assert calls.next_frame() == call.frame
    assert calls.next_frame() is None
    for event in (Accepted(), Chunk(0), Chunk(1), Usage()):
        assert calls.note(1, event, 1.0) is call
    assert not calls


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("new", Accepted()),
        ("sent", Chunk(0)),
        ("sent", Usage()),
        ("sent", Cancel()),
        ("accepted", Accepted()),
        ("accepted", Chunk(1)),
        ("chunk", Chunk(0)),
        ("new", WHOLE),
        ("chunk", WHOLE),
        ("accepted", ModelInfo(ModelId(""), "raw-tensors")),
    ],
)
def test_events_out_of_turn_are_garbage(state: str, event: Event) -> None:
    calls, _ = table(state)
    with pytest.raises(Garbage):
        calls.note(1, event, 0.0)


@pytest.mark.parametrize("state", ["sent", "accepted"])
def test_a_whole_answer_says_by_itself_that_it_was_accepted(state: str) -> None:
    calls, (call,) = table(state)
    assert calls.note(1, WHOLE, 1.0) is call
    assert not calls


def test_a_cancelled_call_is_cancelled_once() -> None:
    calls, (call,) = table("accepted")
    assert calls.cancel(call, 1.0)
    assert not calls.cancel(call, 2.0)
    assert calls.next_frame() == encode_order(1, Cancel())
    assert calls.next_frame() is None
    assert calls.obey_by() == 1.0 + OBEY_SECONDS


def test_an_answer_to_nothing_is_garbage() -> None:
    with pytest.raises(Garbage):
        Calls().note(1, Accepted(), 0.0)


def test_the_running_call_goes_down_with_its_worker_and_the_others_do_not() -> None:
    calls, (running, waiting, fresh, unsent) = table("accepted", "accepted", "sent", "new")
    assert calls.bury_worker(1.0, 1) == [running]
    assert [calls.next_frame() for _ in range(4)] == [waiting.frame, fresh.frame, unsent.frame, None]


def test_of_a_batch_nobody_is_blamed_before_it_ran_alone() -> None:
    calls, (first, second, third) = table("accepted", "accepted", "sent")
    assert calls.bury_worker(1.0, 8) == []
    alone = [encode_order(call.number, Alone()) + call.frame for call in (first, second)]
    assert [calls.next_frame() for _ in range(4)] == [*alone, third.frame, None]
    for call in (first, second, third):
        calls.note(call.number, Accepted(), 1.0)
    assert calls.bury_worker(2.0, 8) == [first]


def test_a_lone_call_is_the_cause_also_where_batches_are_run() -> None:
    calls, (only, _) = table("accepted", "sent")
    assert calls.bury_worker(1.0, 8) == [only]


def test_a_call_that_no_worker_survives_gets_two_tries() -> None:
    calls, (call,) = table("sent")
    assert calls.bury_worker(1.0, 1) == []
    assert calls.next_frame() == call.frame
    assert calls.bury_worker(2.0, 1) == [call]


def test_what_was_shown_is_never_begun_anew() -> None:
    calls, (first, second) = table("accepted", "chunk")
    assert calls.bury_worker(1.0, 1) == [first, second]


def test_a_cancelled_call_takes_the_blame() -> None:
    calls, (hung, waiting) = table("accepted", "accepted")
    calls.cancel(hung, 1.0)
    assert calls.bury_worker(2.5, 1) == [hung]
    assert calls.next_frame() == waiting.frame


def test_who_has_left_is_not_sent_to_a_fresh_worker() -> None:
    calls, (gone, waiting) = table("sent", "sent")
    calls.cancel(gone, 1.0)
    calls.send_again(2.0)
    assert [calls.next_frame() for _ in range(2)] == [waiting.frame, None]
    assert calls.obey_by() == float("inf")


def test_cancelling() -> None:
    calls, (sent, unsent) = table("accepted", "new")
    assert calls.obey_by() == float("inf")
    assert calls.cancel(unsent, 1.0)
    assert calls.cancel(sent, 2.0)
    assert calls.obey_by() == 2.0 + OBEY_SECONDS
    assert calls.next_frame() == encode_order(sent.number, Cancel())
    assert calls.next_frame() is None
    calls.note(sent.number, Cancel(), 2.1)
    assert not calls
    assert not calls.cancel(sent, 3.0)
    assert calls.obey_by() == float("inf")


def test_a_cancel_that_comes_too_late_is_not_sent() -> None:
    calls, (call,) = table("accepted")
    calls.cancel(call, 1.0)
    calls.note(1, Usage(), 1.0)
    assert calls.next_frame() is None


def test_the_wait_that_is_named_is_what_the_queue_takes() -> None:
    calls, _ = table(*["accepted"] * 4)
    calls.note(1, Usage(), 2.0)  # two seconds each, three left
    for call in range(5, 5 + calls_module.MAX_CALLS - 3):
        calls.check_room(1, 2.0)
        calls.add(call_of(call))
    with pytest.raises(NodeBusy) as caught:
        calls.check_room(1, 2.0)
    assert caught.value.retry_after == 2.0 * calls_module.MAX_CALLS
    with pytest.raises(NodeBusy) as caught:
        calls.check_room(1, 12.0)  # the running one has taken ten already
    assert caught.value.retry_after == 10.0 * calls_module.MAX_CALLS


def test_the_pace_is_that_of_whole_batches() -> None:
    calls, _ = table(*["accepted"] * 256)
    for batch in range(30):
        for call in range(8):
            calls.note(8 * batch + call + 1, Usage(), float(batch + 1))
    calls, more = calls, [call_of(n) for n in range(257, 257 + 240)]
    for call in more:
        calls.add(call)
    with pytest.raises(NodeBusy) as caught:
        calls.check_room(1, 30.0)
    assert caught.value.retry_after == pytest.approx(256 / 8, rel=0.15)


def test_an_order_is_sent_at_once_only_if_it_is_next() -> None:
    calls, _ = table("sent")
    second, third = call_of(2), call_of(3)
    calls.add(second)
    assert calls.take_frame(second) == second.frame
    calls.put_back(second)
    calls.add(third)
    assert calls.take_frame(third) is None
    assert [calls.next_frame() for _ in range(3)] == [second.frame, third.frame, None]


def test_bytes_are_bounded_but_a_lone_call_is_always_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "MAX_HELD", 10)
    calls = Calls()
    calls.check_room(11, 0.0)
    calls.add(call_of(1, 5))
    calls.check_room(5, 0.0)
    with pytest.raises(NodeBusy):
        calls.check_room(6, 0.0)


class Lives(RuleBasedStateMachine):
    """Callers come and go, workers come and die: each call ends once, and the rest is sent again."""

    @initialize()
    def start(self) -> None:
        self.calls = Calls()
        self.now = 0.0
        self.made: dict[int, Call] = {}
        self.over: list[int] = []
        self.with_worker: dict[int, str] = {}

    @rule()
    def ask(self) -> None:
        call = call_of(len(self.made) + 1)
        self.made[call.number] = call
        self.calls.add(call)

    @rule()
    def send(self) -> None:
        before = {n for n, c in self.made.items() if c.sent}
        if self.calls.next_frame() is not None:
            for number in {n for n, c in self.made.items() if c.sent} - before:
                self.with_worker[number] = "sent"

    def end(self, number: int) -> None:
        assert number not in self.over
        self.over.append(number)
        self.with_worker.pop(number, None)

    @precondition(lambda self: self.with_worker)
    @rule(data=st.data(), event=st.sampled_from([Accepted(), Usage(), WHOLE, ValidationFailed("no")]))
    def say(self, data: Any, event: Event) -> None:
        number = data.draw(st.sampled_from(sorted(self.with_worker)))
        self.now += 1
        accepted = self.with_worker[number] == "accepted"
        if accepted == isinstance(event, Accepted) and event is not WHOLE:  # out of turn
            return
        self.calls.note(number, event, self.now)
        if isinstance(event, Accepted):
            self.with_worker[number] = "accepted"
        else:
            self.end(number)

    @precondition(lambda self: len(self.over) < len(self.made))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(set(self.made) - set(self.over))))
        call = self.made[number]
        unsent = not call.sent
        again = call.cancelled_at is not None
        assert self.calls.cancel(call, self.now) != again
        if unsent and not again:
            self.end(number)

    @rule()
    def die(self) -> None:
        accepted = [n for n, state in sorted(self.with_worker.items()) if state == "accepted"]
        gone = [call.number for call in self.calls.bury_worker(self.now, 1)]
        assert set(gone) >= set(accepted[:1])
        for number in gone:
            self.end(number)
        assert all(self.made[n].cancelled_at is None for n in set(self.made) - set(self.over))
        self.with_worker.clear()

    @invariant()
    def none_is_lost(self) -> None:
        assert len(self.calls) == len(self.made) - len(self.over)


TestLives = Lives.TestCase
