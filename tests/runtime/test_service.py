"""A worker's threads at work on a model that the test plays: order, acceptance, and who waits for whom."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import Splitter
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import TensorSpec
from llmesh.runtime import service
from llmesh.runtime.job import Job, Outcome
from llmesh.runtime.orders import Event, Infer, Order, Whole
from llmesh.runtime.pipe import MAX_BODY, decode_event, encode_order
from llmesh.runtime.service import Orders, serve


class Played:
    """Says `steps` chunks a job, one a step, or a Whole where it is 0; a step waits for `go`."""

    task = "raw-tensors"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    labels: tuple[str, ...] = ()
    batch = 4

    def __init__(self, steps: int, *, quick: bool = False) -> None:
        self.steps = steps
        self.quick = quick
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.left: list[Job[int]] = []
        self.asked: list[list[int]] = []
        self.asking = threading.Semaphore(0)
        self._at: dict[Job[int], int] = {}

    @property
    def busy(self) -> bool:
        return bool(self._at)

    def check(self, values: Mapping[str, Value]) -> int:
        return 0

    def take(self, waiting: Sequence[Job[int]]) -> list[Job[int]]:
        self.asked.append([job.call for job in waiting])
        self.asking.release()
        return list(waiting[: self.batch - len(self._at)])

    def step(self, joining: Sequence[Job[int]]) -> Iterator[tuple[Job[int], Outcome]]:
        self.entered.release()
        assert self.go.wait(10)
        self._at |= dict.fromkeys(joining, 0)
        for job, at in list(self._at.items()):
            if at == self.steps:
                del self._at[job]
                yield job, Usage() if self.steps else Whole({}, Usage())
            else:
                self._at[job] = at + 1
                yield job, Chunk(at)

    def leave(self, job: Job[int]) -> bool:
        self.left.append(job)
        return job not in self._at


class Node:
    """The other end of the two pipes."""

    def __init__(self, model: Played, window: float = 0.0) -> None:
        orders, self._orders = os.pipe()
        self._events, events = os.pipe()
        self._splitter = Splitter(MAX_BODY)
        self._bodies: list[bytes] = []
        self._out = os.fdopen(events, "wb")
        arguments = (model, window, Orders(orders), self._out)
        threading.Thread(target=serve, args=arguments, daemon=True).start()
        self._open = [orders, self._events]

    def order(self, *orders: tuple[int, Order]) -> None:
        os.write(self._orders, b"".join(encode_order(call, order) for call, order in orders))

    def hear(self, count: int) -> list[tuple[int, Event]]:
        while len(self._bodies) < count:
            self._bodies += self._splitter.feed(os.read(self._events, 1 << 16))
        heard, self._bodies = self._bodies[:count], self._bodies[count:]
        return [decode_event(body) for body in heard]

    def end(self) -> None:
        os.close(self._orders)


@pytest.fixture
def node_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ended = threading.Semaphore(0)

    def end_process(_: int) -> None:
        ended.release()
        threading.Event().wait()  # nothing comes after it

    monkeypatch.setattr(service.os, "_exit", end_process)
    nodes: list[Node] = []

    def start(model: Played, window: float = 0.0) -> Node:
        nodes.append(Node(model, window))
        return nodes[-1]

    yield start
    for node in nodes:
        node.end()
        assert ended.acquire(timeout=10)


INFER = Infer({})


def test_what_steps_give_is_said_in_order(node_of: Any) -> None:
    model = Played(50)
    node = node_of(model)
    model.go.set()
    node.order(*((call, INFER) for call in (1, 2, 3)))
    heard = node.hear(3 * 52)
    for call in (1, 2, 3):
        own = [event for number, event in heard if number == call]
        assert own == [Accepted(), *map(Chunk, range(50)), Usage()]


def test_a_late_order_is_accepted_while_a_step_runs(node_of: Any) -> None:
    model = Played(0)
    node = node_of(model)
    node.order((1, INFER))
    assert node.hear(1) == [(1, Accepted())]
    assert model.entered.acquire(timeout=10)
    node.order((2, INFER))
    assert node.hear(1) == [(2, Accepted())]
    model.go.set()
    assert node.hear(2) == [(1, Whole({}, Usage())), (2, Whole({}, Usage()))]


def test_a_quick_answer_says_itself_that_it_was_accepted(node_of: Any) -> None:
    model = Played(0, quick=True)
    node = node_of(model)
    model.go.set()
    for call in range(1, 20):
        node.order((call, INFER))
        assert node.hear(1) == [(call, Whole({}, Usage()))]


def test_who_waits_is_cancelled_at_once_and_who_runs_is_asked_of_the_model(node_of: Any) -> None:
    model = Played(0)
    node = node_of(model)
    node.order((1, INFER))
    assert node.hear(1) == [(1, Accepted())]
    assert model.entered.acquire(timeout=10)
    node.order((2, INFER), (2, Cancel()), (1, Cancel()))
    assert node.hear(2) == [(2, Cancel()), (1, Cancel())]
    assert [job.call for job in model.left] == [1]
    model.go.set()
    node.order((3, INFER))
    assert node.hear(2) == [(3, Accepted()), (3, Whole({}, Usage()))]


def test_a_window_in_which_all_have_left_is_over_at_once(
    node_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look again for somebody would take what another thread has begun."""
    model, open_window = Played(0), threading.Event()
    monkeypatch.setattr(service.time, "sleep", lambda _: open_window.wait(10))
    node = node_of(model, 0.5)
    model.go.set()
    node.order((1, INFER))
    assert node.hear(1) == [(1, Accepted())]
    node.order((1, Cancel()))
    assert node.hear(1) == [(1, Cancel())]
    open_window.set()
    assert model.asking.acquire(timeout=10)
    node.order((2, INFER))
    assert node.hear(2) == [(2, Accepted()), (2, Whole({}, Usage()))]
    assert model.asked[:2] == [[], [2]]
