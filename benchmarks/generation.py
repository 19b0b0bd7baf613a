"""How fast does text come, and how long does a late joiner wait?  Ours beside onnxruntime-genai.

Both run the same graph with the same number of threads in one process, in turns, so that a busy
machine slows both; what counts is the ratio of each pair.  Greedy, 128 tokens a row, timed from the
second token on.  onnxruntime-genai's Generator cannot take a joiner: its figure is the first token
of a prompt when nothing else runs.

    python benchmarks/generation.py [--model FOLDER] [--threads 2] [--rounds 7]

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

import onnxruntime_genai as og

from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import Piece
from llmesh.runtime.generation.request import GenerationRequest

ROOT = Path(__file__).parent.parent
PROMPT = "给我讲个故事 / Tell me a long story about a fox."
TOKENS = 128
BATCHES = (1, 4, 8, 16)


def request() -> GenerationRequest:
    return GenerationRequest(prompt=PROMPT, max_tokens=TOKENS, temperature=0, repetition_penalty=1)


def our_speed(generator: Generator, batch: int) -> float:
    """Tokens a second, all rows together."""
    for _ in range(batch):
        generator.submit(request())
    generator.step()
    start, tokens = time.perf_counter(), 0
    while not generator.idle:
        tokens += sum(len(event.token_ids) for event in generator.step() if isinstance(event, Piece))
    return tokens / (time.perf_counter() - start)


def joiner_wait(generator: Generator, mates: int) -> tuple[float, float]:
    """Milliseconds to the first token of a joiner, and the longest its mates waited for theirs."""
    for _ in range(mates):
        generator.submit(request())
    for _ in range(20):
        generator.step()
    start = time.perf_counter()
    job = generator.submit(request())
    longest = 0.0
    while True:
        step = time.perf_counter()
        events = generator.step()
        now = time.perf_counter()
        longest = max(longest, now - step)
        if any(event.job == job for event in events):
            break
    while not generator.idle:
        generator.step()
    return 1000 * (now - start), 1000 * longest


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

    def speed(self, batch: int) -> float:
        generator = self.open(batch)
        start, steps = time.perf_counter(), 0
        while not generator.is_done():
            generator.generate_next_token()
            steps += 1
        return batch * steps / (time.perf_counter() - start)

    def first_token(self) -> float:
        start = time.perf_counter()
        self.open(1)
        return 1000 * (time.perf_counter() - start)


def paired(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> list[tuple[float, float]]:
    """Both in turns; who is first changes."""
    found = []
    for n in range(rounds):
        if n % 2:
            other, one = theirs(), ours()
        else:
            one, other = ours(), theirs()
        found.append((one, other))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "llmesh/demo/gpt-mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
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
    print(f"{chosen.model.name}, {chosen.threads} threads, medians of {chosen.rounds} pairs")
    print(f"{'batch':>8} {'ours':>8} {'genai':>8} tok/s  {'ratio':>6} {'(lowest, highest)':>18}")
    table = {}
    for batch in BATCHES:
        our_speed(generator, batch)
        pairs = paired(chosen.rounds, lambda n=batch: our_speed(generator, n), lambda n=batch: genai.speed(n))
        ratios = sorted(one / other for one, other in pairs)
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(ratios)
        table[batch] = {"ours": ours, "genai": theirs, "ratio": ratio, "ratios": ratios}
        print(
            f"{batch:>8} {ours:8.0f} {theirs:8.0f}        {ratio:6.2f}  ({ratios[0]:.2f}, {ratios[-1]:.2f})"
        )
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
