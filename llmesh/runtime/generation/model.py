"""A decoder as a worker's Model (see `runtime.job`): jobs join between steps, every step says what is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from llmesh.core.encoding import Value
from llmesh.core.exchange import Cancel
from llmesh.core.inference import Chunk
from llmesh.core.model import TEXT_GENERATION, TensorSpec
from llmesh.runtime import job as worker
from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import Event, Failed, Finished, Job, JobId, Piece
from llmesh.runtime.generation.request import GenerationRequest
from llmesh.runtime.orders import Load

__all__ = ["TextGenerator"]

_Job: TypeAlias = "worker.Job[Job]"


class TextGenerator:
    """Streams text: a Chunk a piece, one with `finish_reason` at the end, then the Usage."""

    task = TEXT_GENERATION
    inputs: tuple[TensorSpec, ...] = (TensorSpec("text", "string", ()),)
    outputs: tuple[TensorSpec, ...] = (
        TensorSpec("text", "string", ()),
        TensorSpec("finish_reason", "string", ()),
    )
    labels: tuple[str, ...] = ()

    def __init__(self, order: Load) -> None:
        """Raises ValidationFailed where the bundle holds no decoder that runs here."""
        limits = Limits(threads=order.settings.threads)
        self.batch = limits.rows
        self._generator = Generator(Path(order.folder), order.graph, limits)
        self._jobs: dict[JobId, _Job] = {}
        self._chunks: dict[JobId, int] = {}
        self._left: set[_Job] = set()  # by the listening thread, taken up by the next step

    @property
    def busy(self) -> bool:
        """Whether anything is being written."""
        return bool(self._jobs)

    @property
    def quick(self) -> bool:
        """Never: callers come and go in the middle of an answer."""
        return False

    def check(self, values: Mapping[str, Value]) -> Job:
        """The prompt as tokens and what it may take.  Raises ValidationFailed that names the field."""
        return self._generator.prepare(GenerationRequest.parse(values))

    def take(self, waiting: Sequence[_Job]) -> list[_Job]:
        """As many as there are rows for; one that is to be alone shares none with others."""
        if any(job.alone for job in self._jobs.values()):
            return []
        if waiting and waiting[0].alone:
            return [] if self._jobs else [waiting[0]]
        room = waiting[: max(0, self.batch - len(self._jobs))]
        return list(takewhile(lambda job: not job.alone, room))

    def step(self, joining: Sequence[_Job]) -> Iterator[tuple[_Job, worker.Outcome]]:
        """One token for every job that has its prompt read."""
        for job in joining:
            self._jobs[job.input.id] = job
            self._chunks[job.input.id] = 0
            self._generator.add(job.input)
        yield from self._take_leave()  # after joining: a caller may go while its job joins
        for event in self._generator.step():
            yield from self._say(event)

    def leave(self, job: _Job) -> bool:
        """Its row is free at the next step, which says Cancel, unless others are there.

        These can be in the middle of a long step, which is not to be taken for one that does not stop.
        """
        self._left.add(job)
        job.input.stop.set()
        return any(other not in self._left for other in list(self._jobs.values()))

    def _take_leave(self) -> Iterator[tuple[_Job, worker.Outcome]]:
        while self._left:
            job = self._left.pop()
            if self._jobs.pop(job.input.id, None) is not None:
                self._generator.cancel(job.input.id)
                del self._chunks[job.input.id]
                yield job, Cancel()

    def _say(self, event: Event) -> Iterator[tuple[_Job, worker.Outcome]]:
        job = self._jobs[event.job]
        if isinstance(event, Piece):
            yield job, Chunk(self._count(event.job), event.text, event.token_ids)
            return
        if isinstance(event, Finished):
            yield job, Chunk(self._count(event.job), values={"finish_reason": event.reason})
        del self._jobs[event.job], self._chunks[event.job]
        yield job, event.error if isinstance(event, Failed) else event.usage

    def _count(self, job: JobId) -> int:
        index = self._chunks[job]
        self._chunks[job] += 1
        return index
