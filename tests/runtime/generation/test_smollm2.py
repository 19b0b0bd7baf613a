"""SmolLM2-135M-Instruct, a real model from onnxruntime-genai's builder.

Runs where LLMESH_SMOLLM2 names the folder that `benchmarks/smollm2.py` makes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import Event, Finished, JobId, Piece
from llmesh.runtime.generation.request import GenerationRequest, Message

FOLDER = os.environ.get("LLMESH_SMOLLM2", "")
QUESTIONS = ("What is the capital of France?", "Write one line about the sea.", "Count to five.")


def run(generator: Generator, questions: tuple[str, ...]) -> list[tuple[str, str]]:
    jobs = [
        generator.submit(GenerationRequest(messages=(Message("user", one),), max_tokens=40))
        for one in questions
    ]
    texts, reasons = dict.fromkeys(jobs, ""), dict[JobId, str]()
    while not generator.idle:
        for event in generator.step():
            note(event, texts, reasons)
    return [(texts[job], reasons[job]) for job in jobs]


def note(event: Event, texts: dict[JobId, str], reasons: dict[JobId, str]) -> None:
    if isinstance(event, Piece):
        texts[event.job] += event.text
    elif isinstance(event, Finished):
        reasons[event.job] = event.reason


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="LLMESH_SMOLLM2 names no folder")
def test_it_answers_alone_as_in_company() -> None:
    generator = Generator(Path(FOLDER), "model.onnx", Limits(threads=2, rows=4))
    together = run(generator, QUESTIONS)
    assert together == [run(generator, (one,))[0] for one in QUESTIONS]
    assert "Paris" in together[0][0]
    generator.close()
