"""Jobs that share a batch: a step reads their newest tokens, chooses the next, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NewType, TypeAlias

from llmesh.core.inference import Usage
from llmesh.errors import MeshError, ModelFailed
from llmesh.runtime.generation.graph import Floats, Graph, Past, Stop
from llmesh.runtime.generation.layout import Layout
from llmesh.runtime.generation.rows import columns_for, rows_for
from llmesh.runtime.generation.sampling import Choice, Chooser, choose, choose_again
from llmesh.runtime.generation.text import Span, TextStream

__all__ = ["Event", "Failed", "Finished", "Job", "JobId", "Lane", "Piece", "cache_bytes"]

JobId = NewType("JobId", int)

_CAUTION = 8.0
"""Batch-mates are taken to move logits by at most so many times what was seen when the model was loaded."""
_COPIES = 3
"""Cache, what the graph writes, and the new cache while one of another size is laid out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown, with the tokens it is made of."""

    job: JobId
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """`stop`: an end token or a stop string came; `length`: max_tokens or the context was reached."""

    job: JobId
    reason: Literal["stop", "length"]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The job is over without an end: the model failed on it."""

    job: JobId
    error: MeshError


Event: TypeAlias = "Piece | Finished | Failed"


@dataclass(slots=True, eq=False)
class Job:
    """One request under way: at most `most` tokens after `prompt`, of which `read` are in `past`.

    `stop` ends the reading of its prompt, which the job then fails by.
    """

    id: JobId
    prompt: list[int]
    most: int
    ends: frozenset[int]
    chooser: Chooser
    text: TextStream
    past: Past = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)
    read: int = 0
    token: int = -1
    count: int = 0
    seconds: float = 0.0

    @property
    def reserve(self) -> int:
        """The most tokens its row will hold; the last one chosen is never read."""
        return len(self.prompt) + self.most - 1

    def take(self, choice: Choice) -> Iterator[Event]:
        """What a new token brings; the job is over when Finished or Failed is among it."""
        if choice.token < 0:
            yield Failed(self.id, ModelFailed("The model's logits are not numbers."))
        elif choice.token in self.ends:
            yield from self._finish(self.text.end())
        else:
            self.token = choice.token
            self.count += 1
            self.chooser.note(choice.token)
            yield from self._grow(self.text.push(choice.token))

    def _grow(self, span: Span) -> Iterator[Event]:
        if self.text.stopped:
            yield from self._finish(span)
            return
        yield from self._show(span)
        if self.count == self.most:
            yield from self._show(self.text.end())
            yield self._finished("stop" if self.text.stopped else "length")

    def _finish(self, span: Span) -> Iterator[Event]:
        yield from self._show(span)
        yield self._finished("stop")

    def _show(self, span: Span) -> Iterator[Event]:
        if span.text or span.token_ids:
            yield Piece(self.id, span.text, span.token_ids)

    def _finished(self, reason: Literal["stop", "length"]) -> Finished:
        usage = Usage(len(self.prompt), self.count, 1000 * self.seconds)
        return Finished(self.id, reason, usage)


class Lane:
    """Rows that step together.  `promised` are all its jobs; `running` those with a row, in order."""

    def __init__(self, layout: Layout, limit: int) -> None:
        self._layout = layout
        self._limit = limit
        self._rows = layout.open_rows(limit)
        self.promised: list[Job] = []
        self.running: list[Job] = []

    def join(self, job: Job) -> None:
        """Give a promised job, whose prompt is read and first token chosen, its row."""
        self._rows.join(job.past, job.reserve)
        job.past = []
        self.running.append(job)

    def leave(self, job: Job) -> None:
        """Forget a job, running or not."""
        self.promised.remove(job)
        if job in self.running:
            row = self.running.index(job)
            self._rows.leave(row)
            self.running[row] = self.running[-1]
            del self.running[-1]

    def step(self) -> tuple[list[Choice], float] | ModelFailed:
        """Read every running job's newest token: the next of each, and the seconds for each of them.

        It touches this lane only; lanes step side by side.
        """
        start = time.perf_counter()
        try:
            logits = self._rows.step([job.token for job in self.running])
            chosen = self._choose(logits)
        except ModelFailed as error:
            return error
        return chosen, (time.perf_counter() - start) / len(self.running)

    def advance(self, found: tuple[list[Choice], float] | ModelFailed) -> Iterator[Event]:
        """Say what came of a step; the rows of jobs that are over are free."""
        if isinstance(found, ModelFailed):
            yield from self._break(found)
            return
        chosen, seconds = found
        for job, choice in zip(list(self.running), chosen, strict=True):
            job.seconds += seconds
            for event in job.take(choice):
                yield event
                if not isinstance(event, Piece):
                    self.leave(job)

    def _choose(self, logits: Floats) -> list[Choice]:
        noise = _CAUTION * self._layout.noise if len(self.running) > 1 else 0.0
        chosen = choose(logits, [job.chooser for job in self.running], noise)
        for row, choice in enumerate(chosen):
            if choice.close:
                chosen[row] = choose_again(self._rows.again(row), self.running[row].chooser)
        return chosen

    def _break(self, error: ModelFailed) -> Iterator[Event]:
        """A run that failed takes the rows of its lane with it."""
        for job in self.running:
            self.promised.remove(job)
            yield Failed(job.id, error)
        self.running = []
        self._rows = self._layout.open_rows(self._limit)


def cache_bytes(graph: Graph, jobs: list[Job]) -> int:
    """The most memory that a lane of these jobs takes for keys and values."""
    if not jobs:
        return 0
    columns = columns_for(max(job.reserve for job in jobs) + 1)
    return _COPIES * rows_for(len(jobs)) * columns * graph.token_bytes
