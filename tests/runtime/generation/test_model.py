"""A decoder as its worker has it: who joins, who leaves, and who is held up by whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmesh.core.exchange import Cancel
from llmesh.core.inference import Chunk
from llmesh.errors import ModelFailed
from llmesh.runtime.generation.lane import Job as Work
from llmesh.runtime.generation.model import TextGenerator
from llmesh.runtime.job import Job
from llmesh.runtime.orders import Load
from llmesh.runtime.settings import WorkerSettings

MINI = Path(__file__).parents[3] / "llmesh/demo/gpt-mini"


@pytest.fixture(scope="module")
def model() -> TextGenerator:
    return TextGenerator(Load(str(MINI), (), "model.onnx", 0, WorkerSettings(threads=1)))


@pytest.fixture
def jobs(model: TextGenerator) -> Iterator[list[Job[Work]]]:
    made = [Job(call, model.check({"text": "给我讲个故事", "max_tokens": 40})) for call in (1, 2, 3)]
    yield made
    for job in made:
        model.leave(job)
    while model.busy:
        list(model.step([]))


def said(model: TextGenerator, joining: list[Job[Work]]) -> dict[int, list[Any]]:
    outcomes: dict[int, list[Any]] = {}
    for job, outcome in model.step(joining):
        outcomes.setdefault(job.call, []).append(outcome)
    return outcomes


def test_only_the_last_caller_is_waited_for(model: TextGenerator, jobs: list[Job[Work]]) -> None:
    """A step that is long for others must not look as if it would not stop."""
    said(model, jobs)
    assert [model.leave(job) for job in jobs] == [True, True, False]
    assert said(model, []) == {1: [Cancel()], 2: [Cancel()], 3: [Cancel()]}
    assert not model.busy


def test_a_prompt_that_nobody_waits_for_is_not_read_to_its_end(
    model: TextGenerator, jobs: list[Job[Work]]
) -> None:
    first, second, _ = jobs
    first.input.stop.set()  # as by a caller who leaves while the step is under way
    outcomes = said(model, [first, second])
    assert [type(outcome) for outcome in outcomes[1]] == [ModelFailed]
    assert all(isinstance(outcome, Chunk) for outcome in outcomes.get(2, []))
    assert model.take([]) == []
    assert model.busy


def test_who_is_to_run_alone_does(model: TextGenerator, jobs: list[Job[Work]]) -> None:
    first, lone, last = jobs
    lone.alone = True
    assert model.take(jobs) == [first]
    said(model, [first])
    assert model.take([lone, last]) == []
    model.leave(first)
    said(model, [])
    assert model.take([lone, last]) == [lone]
    said(model, [lone])
    assert model.take([last]) == []
