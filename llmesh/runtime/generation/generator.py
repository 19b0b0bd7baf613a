"""Text generation with one model: requests come and go between steps, each step gives every row a token.

This is the child's side: plain calls of one thread, no event loop.  A request is refused before it
is accepted or it runs to its end: what it was promised of the cache nobody else gets.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmesh.core.inference import ANSWER_TOKENS
from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.generation.chat import Chat, open_tokenizer
from llmesh.runtime.generation.fusion import open_graph
from llmesh.runtime.generation.graph import Floats
from llmesh.runtime.generation.lane import Event, Failed, Job, JobId, Lane, Piece, cache_bytes
from llmesh.runtime.generation.layout import find_layout
from llmesh.runtime.generation.request import GenerationRequest
from llmesh.runtime.generation.sampling import Chooser, Sampling, choose
from llmesh.runtime.generation.settings import Defaults, read_settings
from llmesh.runtime.generation.text import TextStream

__all__ = ["Generator", "Limits"]

_SMALL_MODEL = 48 << 20
"""Weights that stay in a core's cache: there cores that share out rows beat cores that share out a row."""
_PROMPT_TOKENS = 256
"""So many prompt tokens are read between two steps, so that running rows do not wait long for joiners."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`rows` run at once; `cache_bytes` bounds the keys and values of all of them."""

    threads: int = 1
    rows: int = 16
    cache_bytes: int = 1 << 30


class Generator:
    """One model.  `prepare` may be called at any time; the rest by one thread.

    Raises ValidationFailed where the folder does not hold a decoder that can be run here.
    """

    def __init__(self, folder: Path, graph: str, limits: Limits) -> None:
        self._limits = limits
        self._settings = read_settings(folder)
        self._tokenizer = open_tokenizer(folder)
        self._chat = Chat(self._tokenizer, self._settings)
        lanes = limits.threads if _weight(folder / graph) <= _SMALL_MODEL else 1
        self._graph = open_graph(folder / graph, self._settings, limits.threads // lanes)
        self.layout = find_layout(self._graph, max(2, limits.rows))
        self._lanes = [Lane(self.layout, limits.rows) for _ in range(lanes)]
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
        self._waiting: deque[Job] = deque()
        self._numbers = itertools.count(1)  # shared by threads

    def close(self) -> None:
        """End the threads; what runs is forgotten."""
        self._pool.shutdown()

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._settings.context

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._waiting and not any(lane.running for lane in self._lanes)

    def prepare(self, request: GenerationRequest) -> Job:
        """A job that fits, or ValidationFailed for a request that does not.

        It changes nothing and may be called by another thread while this one steps.
        """
        prompt = self._read_request(request)
        job = self._job(request, prompt, self._most_tokens(request, len(prompt)))
        wanted, there = cache_bytes(self._graph, [job]), self._limits.cache_bytes
        if wanted > there:
            raise ValidationFailed(
                f"max_tokens: {len(prompt)} tokens of prompt and {job.most} of answer take {wanted} bytes"
                f" of cache, and this node has {there}."
            )
        return job

    def add(self, job: Job) -> None:
        """Queue a prepared job; its prompt is read by one of the next steps."""
        self._waiting.append(job)

    def cancel(self, job: JobId) -> None:
        """Forget a job; its row is free at the next step.  One that is over already is no error."""
        for one in [one for one in self._waiting if one.id == job]:
            self._waiting.remove(one)
        for lane in self._lanes:
            for one in [one for one in lane.promised if one.id == job]:
                lane.leave(one)

    def step(self) -> list[Event]:
        """Read some of the prompts that wait, then one token for every running row."""
        events = list(self._read_prompts())
        running = [lane for lane in self._lanes if lane.running]
        steps = [self._pool.submit(lane.step) for lane in running[1:]]
        found = [lane.step() for lane in running[:1]] + [step.result() for step in steps]
        for lane, one in zip(running, found, strict=True):
            events += lane.advance(one)
        return events

    def _read_request(self, request: GenerationRequest) -> list[int]:
        fewest = self._chat.fewest_tokens(request)
        prompt = self._chat.encode(request) if fewest < self.context else []
        length = max(fewest, len(prompt))
        if length >= self.context:
            raise ValidationFailed(
                f"The prompt has {'' if prompt else 'at least '}{length} tokens; with room for an answer"
                f" the model's context of {self.context} takes {self.context - 1}."
            )
        if not prompt:
            raise ValidationFailed("text has no tokens: there is nothing to continue.")
        if max(prompt) >= self._graph.vocabulary:
            raise ValidationFailed("tokenizer.json has more tokens than the graph's vocabulary.")
        return prompt

    def _most_tokens(self, request: GenerationRequest, length: int) -> int:
        room = self.context - length
        if request.max_tokens is None:
            return min(room, self._settings.defaults.max_tokens or ANSWER_TOKENS)
        if request.max_tokens > room:
            raise ValidationFailed(
                f"max_tokens: {request.max_tokens} more tokens after a prompt of {length} do not fit"
                f" the model's context of {self.context}; at most {room} do."
            )
        return request.max_tokens

    def _job(self, request: GenerationRequest, prompt: list[int], most: int) -> Job:
        return Job(
            JobId(next(self._numbers)),
            prompt,
            most,
            self._settings.ends,
            Chooser(_sampling(request, self._settings.defaults), prompt),
            TextStream(self._tokenizer, self._chat.hidden, request.stop),
        )

    def _read_prompts(self) -> Iterator[Event]:
        """Pieces of the first prompts in the queue, side by side where there are cores for it."""
        tokens = 0
        while tokens < _PROMPT_TOKENS:
            self._promise()
            readers = [
                (lane, job) for lane in self._lanes for job in lane.promised if job not in lane.running
            ]
            if not readers:
                return
            readers = sorted(readers, key=lambda one: one[1].id)[: len(self._lanes)]
            tokens += sum(min(self._graph.piece, len(job.prompt) - job.read) for _, job in readers)
            found = self._pool.map(self._read, [job for _, job in readers])
            for (lane, job), logits in zip(readers, found, strict=True):
                yield from self._start(lane, job, logits)

    def _promise(self) -> None:
        """Give waiting jobs, first come first served, a place in a lane while there is room for them."""
        while self._waiting and sum(len(lane.promised) for lane in self._lanes) < self._limits.rows:
            lane = min(self._lanes, key=lambda one: len(one.promised))
            others = [one.promised for one in self._lanes if one is not lane]
            wanted = [*others, [*lane.promised, self._waiting[0]]]
            if sum(cache_bytes(self._graph, jobs) for jobs in wanted) > self._limits.cache_bytes:
                return
            lane.promised.append(self._waiting.popleft())

    def _read(self, job: Job) -> Floats | ModelFailed:
        """The next piece of a prompt: the logits after it."""
        start = time.perf_counter()
        part = job.prompt[job.read : job.read + self._graph.piece]
        try:
            logits, job.past = self._graph.read(part, job.past or self._graph.empty(), job.stop)
        except ModelFailed as error:
            return error
        job.read += len(part)
        job.seconds += time.perf_counter() - start
        return logits

    def _start(self, lane: Lane, job: Job, logits: Floats | ModelFailed) -> Iterator[Event]:
        """Once the prompt is read: the first token, and a row unless that was all."""
        if isinstance(logits, ModelFailed):
            lane.leave(job)
            yield Failed(job.id, logits)
            return
        if job.read < len(job.prompt):
            return
        events = list(job.take(choose(logits[None].copy(), [job.chooser], 0.0)[0]))
        if all(isinstance(event, Piece) for event in events):
            lane.join(job)
        else:
            lane.leave(job)
        yield from events


def _sampling(request: GenerationRequest, own: Defaults) -> Sampling:
    """What the request says, else the model's own; who names top-p or top-k asks for sampling."""
    temperature = own.temperature if request.temperature is None else request.temperature
    if request.temperature is None and (request.top_p is not None or request.top_k is not None):
        temperature = temperature or 1.0
    penalty = request.repetition_penalty
    return Sampling(
        temperature=temperature,
        top_p=own.top_p if request.top_p is None else request.top_p,
        top_k=own.top_k if request.top_k is None else request.top_k,
        repetition_penalty=own.repetition_penalty if penalty is None else penalty,
        seed=secrets.randbits(64) if request.seed is None else request.seed,
    )


def _weight(graph: Path) -> int:
    """Bytes of the graph and of the data beside it."""
    return sum(one.stat().st_size for one in graph.parent.glob(f"{graph.stem}.onnx*"))
