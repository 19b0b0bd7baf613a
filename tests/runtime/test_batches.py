"""What is run together, what is not, and that nobody suffers from who else is in a run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.encoding import Value
from llmesh.core.exchange import Cancel
from llmesh.core.model import TensorSpec
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.batches import BatchedModel, similar
from llmesh.runtime.graph import Stop
from llmesh.runtime.job import Job
from llmesh.runtime.orders import Whole
from llmesh.runtime.settings import WorkerSettings

from .conftest import Save, classifier, opened
from .test_text import TOKENIZER, WORDS


@dataclass(frozen=True)
class Count:
    """So many tokens; fewer than none make a run fail."""

    n: int
    group: Hashable = ()

    @property
    def tokens(self) -> int:
        return abs(self.n)

    def __len__(self) -> int:
        return abs(self.n)


class Counting:
    """A task whose inputs are token counts."""

    task = "raw-tensors"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    labels: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.hold = threading.Event()
        self.hold.set()

    def check(self, values: Mapping[str, Value]) -> Count:
        n = values["n"]
        assert isinstance(n, int)
        return Count(n)

    def answer(self, inputs: Sequence[Count], stop: Stop) -> list[dict[str, Value]]:
        self.runs.append([count.n for count in inputs])
        while not self.hold.wait(0.001):
            if stop.is_set():
                raise ModelFailed("stopped")
        if min(self.runs[-1]) < 0:
            raise ModelFailed("a bad one")
        return [{"n": count.n} for count in inputs]

    def batches(self) -> bool:
        return True


def jobs_of(*numbers: int) -> list[Job[Count]]:
    return [Job(call, Count(n)) for call, n in enumerate(numbers, 1)]


def at_work(task: Counting, **settings: Any) -> BatchedModel[Count]:
    """A model that did not just rest."""
    model = BatchedModel(task, WorkerSettings(**settings))
    model.take(jobs_of(1))
    return model


def ended(model: BatchedModel[Count], joining: Sequence[Job[Count]]) -> dict[int, Any]:
    """The last that is said of each job in one step."""
    return {job.call: outcome for job, outcome in model.step(joining)}


def test_what_waits_is_run_together_and_answered_apart() -> None:
    task = Counting()
    model = at_work(task, max_batch=3)
    jobs = jobs_of(5, 6, 7, 8)
    taken = model.take(jobs)
    assert [job.input.n for job in taken] == [5, 6, 7]
    said = [(job.call, outcome) for job, outcome in model.step(taken) if isinstance(outcome, Whole)]
    assert [(call, whole.values, whole.usage.input_tokens) for call, whole in said] == [
        (1, {"n": 5}, 5), (2, {"n": 6}, 6), (3, {"n": 7}, 7),
    ]  # fmt: skip
    assert model.take([]) == []
    assert not model.busy


def test_after_a_rest_half_is_left_for_the_next_run() -> None:
    model = BatchedModel(Counting(), WorkerSettings())
    jobs = jobs_of(*[5] * 7)
    assert model.take(jobs) == jobs[:4]
    assert model.take(jobs[4:]) == jobs[4:]
    assert model.take([]) == []
    assert model.take(jobs[:1]) == jobs[:1]
    patient = BatchedModel(Counting(), WorkerSettings(window=0.001))
    assert patient.take(jobs) == jobs


def test_only_one_group_shares_a_run() -> None:
    groups = ["a", None, "b", "a", None, "b"]
    jobs = [Job(n, Count(3, group)) for n, group in enumerate(groups)]
    model, taken = at_work(Counting()), []
    while jobs:
        taken.append([job.call for job in model.take(jobs)])
        jobs = [job for job in jobs if job.call not in taken[-1]]
    assert taken == [[0, 3], [1], [2, 5], [4]]


def test_a_run_is_quick_by_the_pace_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.001] * 9)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    model = BatchedModel(Counting(), WorkerSettings())

    def is_quick(number: int, group: Hashable = ()) -> bool:
        taken = model.take([Job(1, Count(number, group))])
        was = model.quick
        assert list(model.step(taken))
        return was

    assert not is_quick(10)  # nothing is known
    assert is_quick(19)  # a millisecond for ten
    assert not is_quick(39)  # one for nineteen
    assert is_quick(39)
    assert not is_quick(39, "other")
    model.take([])
    assert not model.quick


def test_one_bad_input_fails_alone() -> None:
    task = Counting()
    model = at_work(task)
    jobs = jobs_of(5, -5, 6)
    assert ended(model, model.take(jobs)) == {}
    outcomes: dict[int, Any] = {}
    while model.busy:
        assert model.take(jobs_of(9)) == []  # first those that wait for their second try
        outcomes |= ended(model, [])
    assert {call: type(outcome) for call, outcome in outcomes.items()} == {
        1: Whole, 2: ModelFailed, 3: Whole,
    }  # fmt: skip
    assert task.runs == [[5, -5, 6], [5], [-5], [6]]


def test_who_is_to_run_alone_does() -> None:
    model = at_work(Counting())
    lone, other, third = jobs_of(5, 5, 5)
    lone.alone = True
    assert model.take([lone, other]) == [lone]
    assert model.take([other, lone, third]) == [other, third]


def run_and_leave(
    model: BatchedModel[Count], task: Counting, leaving: int, jobs: list[Job[Count]]
) -> list[Any]:
    """Start a run of the jobs and let the first ones leave in the middle of it."""
    task.hold.clear()
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.extend(model.step(jobs)))
    thread.start()
    while not task.runs:
        pass
    left = [model.leave(job) for job in jobs[:leaving]]
    task.hold.set() if leaving < len(jobs) else None
    thread.join(5)
    assert not thread.is_alive()
    assert left == [True] * min(leaving, len(jobs) - 1) + [False] * (leaving == len(jobs))
    return said


def test_a_run_goes_on_for_those_who_stay_and_stops_without_any() -> None:
    task = Counting()
    said = run_and_leave(BatchedModel(task, WorkerSettings()), task, 2, jobs_of(5, 6, 7))
    assert isinstance(said[-1][1], Whole)
    task = Counting()
    said = run_and_leave(BatchedModel(task, WorkerSettings()), task, 3, jobs_of(5, 6, 7))
    assert isinstance(said[-1][1], Cancel)


def test_who_left_is_not_tried_again() -> None:
    task = Counting()
    model = BatchedModel(task, WorkerSettings())
    jobs = jobs_of(5, -5, 6)
    assert run_and_leave(model, task, 1, jobs) == []
    assert model.leave(jobs[2])
    assert set(ended(model, [])) == {2}
    assert not model.busy


def test_the_last_to_be_tried_again_may_leave_at_any_moment() -> None:
    model = at_work(Counting())
    jobs = jobs_of(5, -5)
    assert ended(model, model.take(jobs)) == {}
    assert model.busy
    assert [model.leave(job) for job in jobs] == [True, True]
    assert list(model.step([])) == []


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 16), st.integers(1, 2_000))
def test_a_batch_is_within_its_bounds(lengths: list[int], limit: int, most: int) -> None:
    jobs = jobs_of(*lengths)
    chosen = similar(jobs[0], {job: job.input.n for job in jobs}, limit, most)
    assert chosen[0] is jobs[0]
    assert len(set(chosen)) == len(chosen) <= limit
    short, long = min(job.input.n for job in chosen), max(job.input.n for job in chosen)
    assert long <= 2 * short + 8
    assert len(chosen) == 1 or long * len(chosen) <= most


def test_texts_of_like_length_are_chosen() -> None:
    jobs = jobs_of(10, 100, 11, 9, 120, 12)
    chosen = similar(jobs[0], {job: job.input.n for job in jobs}, 8, 4_096)
    assert sorted(job.input.n for job in chosen) == [9, 10, 11, 12]


def test_the_sentiment_model_says_the_same_in_company() -> None:
    model = opened(SENTIMENT_ANALYZER)
    assert model.batch == 8
    golden = json.loads((SENTIMENT_ANALYZER / "golden.json").read_text())
    cases = golden["cases"][:8]
    jobs = [Job(n, model.check({"text": case["input"]})) for n, case in enumerate(cases)]
    outcomes: list[Any] = [outcome for _, outcome in model.step(jobs)]
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome.values["label"] == case["label"]
        assert outcome.values["score"] == pytest.approx(case["score"], abs=0.02)


def test_a_graph_whose_rows_meddle_is_run_one_by_one(save: Save) -> None:
    configs: dict[str, Any] = {"tokenizer": TOKENIZER, "config": {"id2label": WORDS}}
    assert opened(save(classifier(), **configs)).batch == 8
    assert opened(save(classifier(), **configs), max_batch=1).batch == 1
    assert opened(save(classifier(axes=(0, 1)), **configs)).batch == 1
    fixed = classifier()
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert opened(save(fixed, **configs)).batch == 1


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"max_batch": 0}, {"window": -1.0}, {"window": 5.0}, {"provider": "abacus"}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed):
        WorkerSettings(**wrong)


def test_a_provider_that_is_not_installed_is_named(save: Save) -> None:
    with pytest.raises(ValidationFailed, match=r"set to run models by cuda.*\[cuda\]"):
        opened(save(classifier()), provider="cuda")
