"""The table of calls, driven by a model of a worker that may die at any step."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import ModelInfo
from llmesh.errors import ModelFailed, NodeBusy, ValidationFailed
from llmesh.runtime import calls as calls_module
from llmesh.runtime.calls import OBEY_SECONDS, Call, Calls
from llmesh.runtime.pipe import Event, Garbage, encode_order

DIED = ModelFailed("The worker died.")


def call_of(number: int, size: int = 1) -> Call:
    caller, _ = trio.open_memory_channel[Accepted | Chunk | Usage](1)
    return Call(number, bytes(size), caller)


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
    assert call.error is None


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
        ("accepted", ModelInfo(ModelId(""), "raw-tensors")),
    ],
)
def test_events_out_of_turn_are_garbage(state: str, event: Event) -> None:
    calls, _ = table(state)
    with pytest.raises(Garbage):
        calls.note(1, event, 0.0)


def test_an_answer_to_nothing_is_garbage() -> None:
    with pytest.raises(Garbage):
        Calls().note(1, Accepted(), 0.0)


def test_the_running_call_goes_down_with_its_worker_and_the_others_do_not() -> None:
    calls, (running, waiting, fresh, unsent) = table("accepted", "accepted", "sent", "new")
    assert calls.bury_worker(DIED, 1.0) == [running]
    assert running.error is DIED
    assert [calls.next_frame() for _ in range(4)] == [waiting.frame, fresh.frame, unsent.frame, None]


def test_a_call_that_no_worker_survives_gets_two_tries() -> None:
    calls, (call,) = table("sent")
    assert calls.bury_worker(DIED, 1.0) == []
    assert calls.next_frame() == call.frame
    assert calls.bury_worker(DIED, 2.0) == [call]


def test_what_was_shown_is_never_begun_anew() -> None:
    calls, (first, second) = table("accepted", "chunk")
    assert calls.bury_worker(DIED, 1.0) == [first, second]


def test_a_cancelled_call_takes_the_blame() -> None:
    calls, (hung, waiting) = table("accepted", "accepted")
    calls.cancel(hung, 1.0)
    assert calls.bury_worker(DIED, 2.5) == [hung]
    assert calls.next_frame() == waiting.frame


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
    @rule(data=st.data(), event=st.sampled_from([Accepted(), Usage(), ValidationFailed("no")]))
    def say(self, data: Any, event: Event) -> None:
        number = data.draw(st.sampled_from(sorted(self.with_worker)))
        self.now += 1
        accepted = self.with_worker[number] == "accepted"
        if accepted == isinstance(event, Accepted):  # out of turn
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
        assert self.calls.cancel(call, self.now)
        if unsent:
            self.end(number)

    @rule()
    def die(self) -> None:
        accepted = [n for n, state in sorted(self.with_worker.items()) if state == "accepted"]
        gone = [call.number for call in self.calls.bury_worker(DIED, self.now)]
        assert set(gone) >= set(accepted[:1])
        for number in gone:
            self.end(number)
        assert all(self.made[n].cancelled_at is None for n in set(self.made) - set(self.over))
        self.with_worker.clear()

    @invariant()
    def none_is_lost(self) -> None:
        assert len(self.calls) == len(self.made) - len(self.over)


TestLives = Lives.TestCase
