"""Two windows back to back: never overrun, never stuck."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.credit import ReceiveWindow, SendWindow
from llmesh.errors import ValidationFailed


@given(st.lists(st.integers(1, 50), max_size=200), st.randoms(use_true_random=False))
def test_everything_gets_through_in_any_order_of_steps(costs: list[int], random: object) -> None:
    sender, receiver = SendWindow(100), ReceiveWindow(100)
    waiting, inbox, returned = list(costs), [], []
    while waiting or inbox or returned:
        steps = []
        if waiting and sender.left >= waiting[0]:
            steps.append("send")
        if inbox:
            steps.append("take")
        if returned:
            steps.append("grant")
        step = random.choice(steps)  # type: ignore[attr-defined]
        if step == "send":
            sender.left -= waiting[0]
            receiver.arrive(waiting[0])
            inbox.append(waiting.pop(0))
        elif step == "take":
            if owed := receiver.take(inbox.pop(0)):
                returned.append(owed)
        else:
            sender.grant(returned.pop(0))
        assert 0 <= sender.left <= 100
        assert sum(inbox) <= 100


def test_a_sender_without_credit_is_found_out() -> None:
    receiver = ReceiveWindow(100)
    receiver.arrive(100)
    with pytest.raises(ValidationFailed):
        receiver.arrive(1)


def test_more_credit_than_was_used_is_found_out() -> None:
    sender = SendWindow(100)
    sender.left -= 10
    with pytest.raises(ValidationFailed):
        sender.grant(11)


def test_credit_comes_back_at_half() -> None:
    receiver = ReceiveWindow(100)
    receiver.arrive(100)
    assert [receiver.take(n) for n in (20, 29, 1, 49, 1)] == [0, 0, 50, 0, 50]
