"""Two exchanges back to back: no network, no event loop, no clock."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.exchange import (
    CROSSED,
    STEPS,
    Accepted,
    Cancel,
    Completed,
    Exchange,
    Failed,
    Message,
    Request,
    Role,
    State,
)
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Attempt, Chunk, Usage
from llmesh.errors import NodeBusy, ValidationFailed
from tests.core.receipts import costing

PEER = PeerId("12D3KooW" + "x" * 44)
ATTEMPT = Attempt(RequestId("0" * 32), 1, ModelId("a" * 64), {"text": "hi"}, Amount(100), 5.0)
DONE = Completed(Usage(), costing(100))
OPENING: list[Message] = [Request(ATTEMPT), Accepted(), Chunk(0)]
EVERY: list[Message] = [*OPENING, Chunk(1), DONE, Failed(NodeBusy("full")), Cancel()]


def pair() -> tuple[Exchange, Exchange]:
    return Exchange(Role.CONSUMER, PEER), Exchange(Role.PROVIDER, PEER)


def talk(consumer: Exchange, provider: Exchange, *messages: Message) -> None:
    for message in messages:
        here, there = (consumer, provider) if isinstance(message, Request | Cancel) else (provider, consumer)
        here.send(message)
        there.receive(message)


def test_a_whole_conversation() -> None:
    consumer, provider = pair()
    talk(consumer, provider, *OPENING, Chunk(1), DONE)
    assert consumer.state is provider.state is State.COMPLETED
    assert consumer.attempt is provider.attempt is ATTEMPT
    assert consumer.chunks == 2


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("end", [Failed(NodeBusy("full")), Cancel()])
def test_it_may_end_at_any_point(after: int, end: Message) -> None:
    consumer, provider = pair()
    talk(consumer, provider, *OPENING[:after], end)
    assert consumer.state is provider.state
    for message in EVERY:
        with pytest.raises(RuntimeError):
            provider.send(message)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ([Request(ATTEMPT)], Chunk(0)),
        ([Request(ATTEMPT)], DONE),
        ([Request(ATTEMPT)], Request(ATTEMPT)),
        ([Request(ATTEMPT), Accepted()], Accepted()),
        ([Request(ATTEMPT), Accepted()], Chunk(1)),
        (OPENING, Chunk(0)),
        (OPENING, Chunk(2)),
        (OPENING, Completed(Usage(), costing(101))),
        ([*OPENING, DONE], Chunk(1)),
        ([*OPENING, DONE], DONE),
        ([*OPENING, DONE], Failed(NodeBusy("full"))),
    ],
)
def test_a_peer_out_of_turn_is_named_and_changes_nothing(said: list[Message], wrong: Message) -> None:
    consumer, provider = pair()
    talk(consumer, provider, *said)
    before = vars(consumer).copy()
    with pytest.raises(ValidationFailed) as caught:
        consumer.receive(wrong)
    assert caught.value.peer_id == PEER
    assert caught.value.try_next()
    assert vars(consumer) == before


def test_a_consumer_out_of_turn_is_named_too() -> None:
    _, provider = pair()
    with pytest.raises(ValidationFailed) as caught:
        provider.receive(Cancel())
    assert caught.value.peer_id == PEER


def test_a_bug_of_our_own_is_no_error_of_the_peer() -> None:
    consumer, _ = pair()
    with pytest.raises(RuntimeError, match="consumer said Cancel while the exchange was idle"):
        consumer.send(Cancel())


def test_every_state_but_the_first_can_be_reached_and_the_table_is_closed() -> None:
    assert set(STEPS.values()) == set(State) - {State.IDLE}
    assert not CROSSED & STEPS.keys()


@given(st.data())
def test_legal_talk_is_never_refused_whatever_is_on_its_way(data: st.DataObject) -> None:
    """Each side sends what its own table allows; messages wait in two queues of any length."""
    consumer, provider = pair()
    sides = {Role.CONSUMER: consumer, Role.PROVIDER: provider}
    queues: dict[Role, deque[Message]] = {Role.CONSUMER: deque(), Role.PROVIDER: deque()}
    for _ in range(data.draw(st.integers(0, 25))):
        role = data.draw(st.sampled_from(Role))
        side, other = sides[role], next(r for r in Role if r is not role)
        if data.draw(st.booleans()) and queues[other]:
            side.receive(queues[other].popleft())
            continue
        legal = [m for m in [*EVERY, Chunk(side.chunks)] if not side._fault(role, m)]
        if legal:
            message = data.draw(st.sampled_from(legal))
            side.send(message)
            queues[role].append(message)
    for role, side in sides.items():
        other = next(r for r in Role if r is not role)
        while queues[other]:
            side.receive(queues[other].popleft())
    ends = {consumer.state, provider.state}
    assert len(ends) == 1 or ends <= {State.CANCELLED, State.COMPLETED, State.FAILED}


@given(st.lists(st.sampled_from(EVERY), max_size=12))
def test_any_talk_is_taken_or_refused_and_never_half(messages: list[Message]) -> None:
    consumer, _ = pair()
    consumer.send(Request(ATTEMPT))
    for message in messages:
        before = (consumer.state, consumer.chunks)
        try:
            consumer.receive(message)
        except ValidationFailed:
            assert (consumer.state, consumer.chunks) == before
        else:
            key = (before[0], Role.PROVIDER, type(message))
            assert consumer.state is STEPS[key]
