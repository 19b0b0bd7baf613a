"""Batches: a model that answers in one run, for as many requests at a time as belong together.

A run starts as soon as there is something to run and takes what waits: similar lengths together,
so that little is padding, the oldest always among them.  After a rest it takes only half of that, so
that from then on one half is run while the other is read, answered and asked anew.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from llmesh.core.encoding import Value
from llmesh.core.exchange import Cancel
from llmesh.core.inference import Usage
from llmesh.core.model import TensorSpec
from llmesh.errors import ModelFailed, TooLarge
from llmesh.runtime.graph import Stop
from llmesh.runtime.job import Job, Outcome
from llmesh.runtime.orders import Whole
from llmesh.runtime.settings import WorkerSettings

__all__ = ["BatchedModel", "Request", "Task", "similar"]

_QUICK_SECONDS = 0.002


class Request(Protocol):
    """What a task makes of the values of one request; its length is in tokens or rows."""

    @property
    def group(self) -> Hashable:
        """Only requests of one group may share a run; one whose group is None shares with nobody."""

    @property
    def tokens(self) -> int:
        """Text tokens read."""

    def __len__(self) -> int: ...


Input = TypeVar("Input", bound=Request)


class Task(Protocol[Input]):
    """What a task adds to a graph: from named values to tensors and back."""

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]

    def check(self, values: Mapping[str, Value]) -> Input:
        """The graph's inputs for one request.  Raises ValidationFailed."""

    def answer(self, inputs: Sequence[Input], stop: Stop) -> list[dict[str, Value]]:
        """The named outputs of each, from one run.  Raises ModelFailed, TooLarge."""

    def batches(self) -> bool:
        """Whether requests may share a run: whether each then gets the answer that it gets alone."""


class BatchedModel(Generic[Input]):
    """A Model (see `job`) out of a Task; every step is one run and ends all jobs in it."""

    def __init__(self, task: Task[Input], settings: WorkerSettings) -> None:
        """Raises ModelFailed where the graph does not run at all."""
        self.task = task.task
        self.inputs = task.inputs
        self.outputs = task.outputs
        self.labels = task.labels
        self._task = task
        self._settings = settings
        self._changing = threading.Lock()  # over the two below
        self._running: list[Job[Input]] = []
        self._stop = Stop()
        self._again: deque[Job[Input]] = deque()
        self._rested = True
        self._pace: dict[Hashable, float] = {}  # seconds a unit of length, of the group last run
        self.quick = False
        self.batch = settings.max_batch if settings.max_batch > 1 and task.batches() else 1

    @property
    def busy(self) -> bool:
        """Whether a batch failed and is tried one by one."""
        return bool(self._again)

    def check(self, values: Mapping[str, Value]) -> Input:
        """See `Task.check`."""
        return self._task.check(values)

    def take(self, waiting: Sequence[Job[Input]]) -> list[Job[Input]]:
        """The oldest and what goes well with it."""
        if self._again:
            self.quick = False
            return []
        taken = self._choose(waiting) if waiting else []
        self._rested = not waiting
        pace = self._pace.get(taken[0].input.group) if taken else None
        due = pace is not None and pace * _length(taken) < _QUICK_SECONDS
        self.quick = due and not self._settings.window
        return taken

    def _choose(self, waiting: Sequence[Job[Input]]) -> list[Job[Input]]:
        oldest, group = waiting[0], waiting[0].input.group
        if oldest.alone or self.batch == 1 or group is None:
            return [oldest]
        lengths = {job: len(job.input) for job in waiting if not job.alone and job.input.group == group}
        several = len(lengths)
        if self._rested and not self._settings.window:  # who has set a window wants whole batches
            several = (several + 1) // 2
        return similar(oldest, lengths, min(self.batch, several), self._settings.batch_tokens)

    def step(self, joining: Sequence[Job[Input]]) -> Iterator[tuple[Job[Input], Outcome]]:
        """One run.  A batch that fails is tried again one by one, so that only the cause is lost."""
        jobs = joining or self._next_again()
        if not jobs:
            return
        stop = self._begin(jobs)
        start = time.perf_counter()
        try:
            answers = self._task.answer([job.input for job in jobs], stop)
        except (ModelFailed, TooLarge) as error:
            if len(jobs) > 1 and not stop.is_set():
                self._try_again()
            else:
                yield from ((job, Cancel() if stop.is_set() else error) for job in jobs)
            return
        finally:
            self._begin([])
        seconds = time.perf_counter() - start
        self._pace = {jobs[0].input.group: seconds / _length(jobs)}
        for job, values in zip(jobs, answers, strict=True):
            yield job, Whole(values, Usage(job.input.tokens, 0, seconds * 1e3 / len(jobs), len(jobs)))

    def leave(self, job: Job[Input]) -> bool:
        """A run goes on for its other callers, and ends within a node of the graph without any."""
        with self._changing:
            if self._running == [job]:
                self._stop.set()
                return False
            if job in self._running:
                self._running.remove(job)
            elif job in self._again:
                self._again.remove(job)
            return True

    def _next_again(self) -> list[Job[Input]]:
        """None where the last has just left."""
        with self._changing:
            return [self._again.popleft()] if self._again else []

    def _try_again(self) -> None:
        with self._changing:
            self._again.extend(self._running)

    def _begin(self, jobs: Sequence[Job[Input]]) -> Stop:
        with self._changing:
            self._running, self._stop = list(jobs), Stop()
            return self._stop


def _length(jobs: Sequence[Job[Input]]) -> int:
    return max(1, sum(len(job.input) for job in jobs))


def similar(oldest: Job[Input], lengths: Mapping[Job[Input], int], limit: int, most: int) -> list[Job[Input]]:
    """Up to `limit` jobs around the oldest, none twice as long as another, `most` in all with padding."""
    length = lengths[oldest]
    chosen, shortest, longest = [oldest], length, length
    for job in sorted(lengths, key=lambda job: abs(lengths[job] - length)):
        low, high = min(shortest, lengths[job]), max(longest, lengths[job])
        fits = len(chosen) < limit and high * (len(chosen) + 1) <= most and high <= 2 * low + 8
        if job is not oldest and fits:
            chosen, shortest, longest = [*chosen, job], low, high
    return chosen
