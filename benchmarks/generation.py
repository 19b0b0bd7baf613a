"""How fast does text come, and how long does a late joiner wait?  Ours beside onnxruntime-genai.

Both are given the same file and the same number of threads in one process, in turns, so that a busy
machine slows both: blocks of 14 steps, ours and theirs, and what counts is the median of the ratios
of neighbouring blocks.  Where others use the cores too, the ratio of processor time says more: it is
that of tokens a second on a machine that both fill.  Greedy, 128 tokens a row whatever they are (no
end token ends a row), timed while all rows run: prompts are read before.  onnxruntime-genai's
Generator cannot take a joiner: its figure is the first token of a prompt when nothing else runs.

    python benchmarks/generation.py [--model FOLDER] [--threads 2] [--rounds 5]

needs `onnxruntime-genai` beside the [node] extra; writes benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypedDict

import onnxruntime_genai as og

from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import JobId
from llmesh.runtime.generation.request import GenerationRequest

ROOT = Path(__file__).parent.parent
PROMPT = "给我讲个故事 / Tell me a long story about a fox."
TOKENS = 128
BLOCK, BLOCKS = 14, 8
BATCHES = (1, 4, 8, 16)

Pair: TypeAlias = "tuple[tuple[float, float], tuple[float, float]]"
"""Seconds and seconds of processor time, ours and theirs."""


def request() -> GenerationRequest:
    return GenerationRequest(prompt=PROMPT, max_tokens=TOKENS, temperature=0, repetition_penalty=1)


def start(generator: Generator) -> JobId:
    job = generator.prepare(request())
    job.ends = frozenset()
    generator.add(job)
    return job.id


def open_rows(generator: Generator, batch: int) -> None:
    """Prompts read, the first token of every row said."""
    begun: set[JobId] = set()
    for _ in range(batch):
        start(generator)
    while len(begun) < batch:
        begun.update(event.job for event in generator.step())


def finish(generator: Generator) -> None:
    while not generator.idle:
        generator.step()


def timed(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a block of steps, and of processor time of all threads."""
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(BLOCK):
        step()
    return time.perf_counter() - began, time.process_time() - busy


def pairs_of_blocks(generator: Generator, genai: Genai, batch: int) -> list[Pair]:
    """Seconds of blocks of ours and theirs, all rows together; who is first changes."""
    found = []
    open_rows(generator, batch)
    other = genai.open(batch)
    for n in range(BLOCKS):
        if n % 2:
            theirs, ours = timed(other.generate_next_token), timed(generator.step)
        else:
            ours, theirs = timed(generator.step), timed(other.generate_next_token)
        found.append((ours, theirs))
    finish(generator)
    return found


def summary(pairs: list[Pair], batch: int) -> Summary:
    """Tokens a second of both, and the ratios: the median, and the quartiles of wall time."""
    wall, cpu = (sorted(theirs[n] / ours[n] for ours, theirs in pairs) for n in (0, 1))
    return {
        "ours": batch * BLOCK / statistics.median(ours[0] for ours, _ in pairs),
        "genai": batch * BLOCK / statistics.median(theirs[0] for _, theirs in pairs),
        "ratio": statistics.median(wall),
        "cpu_ratio": statistics.median(cpu),
        "quartiles": [wall[len(wall) * n // 4] for n in (1, 3)],
    }


def joiner_wait(generator: Generator, mates: int) -> tuple[float, float]:
    """Milliseconds to the first token of a joiner, and the longest its mates waited for theirs."""
    for _ in range(mates):
        start(generator)
    for _ in range(20):
        generator.step()
    began = time.perf_counter()
    job = start(generator)
    longest = 0.0
    while True:
        step = time.perf_counter()
        events = generator.step()
        now = time.perf_counter()
        longest = max(longest, now - step)
        if any(event.job == job for event in events):
            break
    finish(generator)
    return 1000 * (now - began), 1000 * longest


class Summary(TypedDict):
    ours: float
    genai: float
    ratio: float
    cpu_ratio: float
    quartiles: list[float]


class Genai:
    """onnxruntime-genai on the same folder."""

    def __init__(self, folder: Path, threads: int, prompt: list[int]) -> None:
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self._prompt = prompt

    def open(self, batch: int) -> og.Generator:
        parameters = og.GeneratorParams(self._model)
        length = len(self._prompt) + TOKENS
        parameters.set_search_options(
            do_sample=False, max_length=length, min_length=length, batch_size=batch, repetition_penalty=1.0
        )
        generator = og.Generator(self._model, parameters)
        generator.append_tokens([self._prompt] * batch if batch > 1 else self._prompt)
        generator.generate_next_token()
        return generator

    def first_token(self) -> float:
        start = time.perf_counter()
        self.open(1)
        return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "llmesh/demo/gpt-mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/generation.json")
    chosen = parser.parse_args()
    generator = Generator(chosen.model, "model.onnx", Limits(threads=chosen.threads, rows=17))
    genai = Genai(chosen.model, chosen.threads, generator._read_request(request()))
    report: dict[str, object] = {
        "model": chosen.model.name,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
    }
    report |= {"machine": platform.processor(), "batch": {}}
    print(
        f"{chosen.model.name}, {chosen.threads} threads, medians of {BLOCKS * chosen.rounds} pairs of blocks"
    )
    print(f"{'batch':>8} {'ours':>8} {'genai':>8} tok/s  {'ratio':>6} {'(quartiles)':>14} {'of cpu':>8}")
    table = {}
    for batch in BATCHES:
        pairs_of_blocks(generator, genai, batch)
        pairs = [one for _ in range(chosen.rounds) for one in pairs_of_blocks(generator, genai, batch)]
        table[batch] = found = summary(pairs, batch)
        print("{:>8} {ours:8.0f} {genai:8.0f}        {ratio:6.2f}".format(batch, **found), end="")
        print("   ({:.2f}, {:.2f}) {:8.2f}".format(*found["quartiles"], found["cpu_ratio"]))
    alone = [genai.first_token() for _ in range(chosen.rounds)]
    report |= {"batch": table, "genai_first_token_alone_ms": statistics.median(alone), "joiner": {}}
    print(f"genai, first token alone: {statistics.median(alone):.1f} ms")
    joiner = {}
    for mates in (0, 7, 15):
        waits, longest = zip(*(joiner_wait(generator, mates) for _ in range(chosen.rounds)), strict=True)
        joiner[mates] = {
            "first_token_ms": statistics.median(waits),
            "longest_step_ms": statistics.median(longest),
        }
        print(f"ours, joining {mates:2} rows: {joiner[mates]['first_token_ms']:.1f} ms")
    report["joiner"] = joiner
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    generator.close()


if __name__ == "__main__":
    main()
