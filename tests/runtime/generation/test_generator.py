"""The generator as its worker uses it: golden answers, batches that change nothing, and every refusal."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmesh.core.inference import Usage
from llmesh.errors import MeshError, ModelFailed, ValidationFailed
from llmesh.runtime.generation.generator import Generator, Limits
from llmesh.runtime.generation.lane import Event, Failed, Finished, JobId, Piece
from llmesh.runtime.generation.request import GenerationRequest, Message

MINI = Path(__file__).parents[3] / "llmesh/demo/gpt-mini"
GREEDY = GenerationRequest(prompt="给我讲个故事", temperature=0, repetition_penalty=1, max_tokens=48)
Open = Callable[..., Generator]


@dataclass
class Answer:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    error: MeshError | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Piece):
            assert not self.reason, "a piece after the end"
            self.text += event.text
            self.token_ids += event.token_ids
        elif isinstance(event, Finished):
            self.reason, self.usage = event.reason, event.usage
        else:
            self.error = event.error

    @property
    def said(self) -> tuple[str, list[int], str]:
        return self.text, self.token_ids, self.reason


def submit(generator: Generator, request: GenerationRequest) -> JobId:
    job = generator.prepare(request)
    generator.add(job)
    return job.id


def run(generator: Generator, *requests: GenerationRequest) -> list[Answer]:
    answers = {submit(generator, one): Answer() for one in requests}
    finish(generator, answers)
    return list(answers.values())


def finish(generator: Generator, answers: dict[JobId, Answer]) -> None:
    while not generator.idle:
        for event in generator.step():
            answers[event.job].add(event)


@pytest.fixture(scope="module", params=[1, 2], ids=["one lane", "two lanes"])
def mini(request: pytest.FixtureRequest) -> Iterator[Generator]:
    generator = Generator(MINI, "model.onnx", Limits(threads=request.param, rows=16))
    yield generator
    generator.close()


def golden() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((MINI / "golden.json").read_text())["cases"]
    return [case for case in cases if case["messages"]]


def test_golden_answers_all_at_once(mini: Generator) -> None:
    requests = [replace(GREEDY, prompt=case["messages"][0]["content"]) for case in golden()]
    for case, answer in zip(golden(), run(mini, *requests), strict=True):
        stable = case["stable_tokens"]
        assert answer.token_ids[:stable] == case["output_ids"][:stable]
        assert answer.usage.input_tokens == len(case["prompt_ids"])
        assert answer.usage.output_tokens == len(answer.token_ids)
        assert answer.usage.compute_ms > 0


def test_alone_or_together_the_text_is_the_same(mini: Generator) -> None:
    requests = [replace(GREEDY, prompt=case["messages"][0]["content"]) for case in golden()]
    requests += [
        GenerationRequest(prompt="写一首诗", seed=n, max_tokens=60, temperature=1.5) for n in range(3)
    ]
    alone = [run(mini, one)[0].said for one in requests]
    assert [answer.said for answer in run(mini, *requests)] == alone
    assert len({text for text, _, _ in alone[-3:]}) == 3


def any_request(chance: random.Random) -> GenerationRequest:
    return GenerationRequest(
        prompt="".join(chance.choices("ab the狐", k=chance.randint(1, 40))),
        max_tokens=chance.randint(1, 50),
        temperature=chance.choice([0.0, 0.8, 2.0]),
        repetition_penalty=chance.choice([1.0, 1.3]),
        top_k=chance.choice([0, 5]),
        seed=chance.randint(0, 9),
    )


@pytest.mark.parametrize("kind", ["plain", "masked", "learned", "grouped"])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=True), threads=st.sampled_from([1, 2]))
def test_joins_leaves_and_cancels_change_nothing(
    opened: Open, kind: str, chance: random.Random, threads: int
) -> None:
    """Any requests, joining at any step, some cancelled at any step, on one lane or two."""
    generator = opened(kind, threads)
    requests = [any_request(chance) for _ in range(chance.randint(2, 9))]
    alone = [run(generator, one)[0].said for one in requests]
    answers: dict[JobId, Answer] = {}
    cancelled: set[JobId] = set()
    left = list(requests)
    while left or not generator.idle:
        for _ in range(min(len(left), chance.randint(0, 3))):
            answers[submit(generator, left.pop(0))] = Answer()
        for _ in range(chance.randint(1, 12)):
            for event in generator.step():
                assert event.job not in cancelled, "an event of a cancelled job"
                answers[event.job].add(event)
        running = [job for job, answer in answers.items() if not answer.reason and job not in cancelled]
        if running and chance.random() < 0.2:
            cancelled.add(job := chance.choice(running))
            generator.cancel(job)
    for (job, answer), expected in zip(answers.items(), alone, strict=True):
        if job in cancelled:
            assert expected[1][: len(answer.token_ids)] == answer.token_ids
        else:
            assert answer.said == expected


def test_every_layout_says_the_same(opened: Open) -> None:
    """The kinds share their weights and compute the same function, each in its own layout."""
    requests = [GenerationRequest(prompt="the 狐狸" * n, max_tokens=40) for n in range(1, 7)]
    plain, masked, grouped, fused = (
        [answer.token_ids for answer in run(opened(kind), *requests)]
        for kind in ("plain", "masked", "grouped", "fused")
    )
    assert plain == masked == grouped == fused
    kinds = {kind: opened(kind).layout.kind for kind in ("plain", "masked", "learned", "grouped", "fused")}
    names = {kind: getattr(layout, "__name__", None) for kind, layout in kinds.items()}
    assert names == {
        "plain": "AppendedRows", "masked": "AppendedRows", "learned": None,
        "grouped": "InPlaceRows", "fused": "InPlaceRows"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "learned", "grouped", "fused"])
def test_a_close_choice_is_made_again_by_the_row_alone(opened: Open, kind: str) -> None:
    """Were mates to move every logit, each row would be asked by itself, and say what it says alone."""
    generator = opened(kind)
    requests = [
        GenerationRequest(prompt="the 狐狸" * n, max_tokens=40, temperature=0.9, seed=n) for n in range(1, 5)
    ]
    expected = [answer.said for answer in run(generator, *requests)]
    (lane,) = generator._lanes
    kept, lane._layout = lane._layout, replace(lane._layout, noise=100.0)
    try:
        assert [answer.said for answer in run(generator, *requests)] == expected
    finally:
        lane._layout = kept


def test_a_long_prompt_is_read_in_pieces(opened: Open) -> None:
    generator = opened("plain")
    request = GenerationRequest(prompt="the fox " * 15, max_tokens=8)
    whole = run(generator, request)[0].said
    generator._graph.piece, kept = 7, generator._graph.piece
    try:
        job = submit(generator, GenerationRequest(prompt="a", max_tokens=30))
        generator.step()
        answers = {job: Answer(), submit(generator, request): Answer()}
        finish(generator, answers)
    finally:
        generator._graph.piece = kept
    assert list(answers.values())[1].said == whole


def test_stop_strings_end_the_answer(mini: Generator) -> None:
    whole = run(mini, GREEDY)[0]
    stop = whole.text[10:13]
    cut = run(mini, replace(GREEDY, stop=("不会出现", stop)))[0]
    assert (cut.text, cut.reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.usage.output_tokens < whole.usage.output_tokens


def test_an_end_token_ends_the_answer(mini: Generator) -> None:
    answer = run(mini, replace(GREEDY, prompt="你好"))[0]
    assert answer.reason == "stop"
    assert answer.text
    assert "<|im_end|>" not in answer.text


def test_max_tokens_is_exact_and_the_default_fills_the_context(opened: Open) -> None:
    generator = opened("plain")
    for most in (1, 2, 31, 32, 33):
        answer = run(generator, GenerationRequest(prompt="ab", max_tokens=most))[0]
        assert answer.reason == "stop" or (answer.reason, len(answer.token_ids)) == ("length", most)
    answer = run(generator, GenerationRequest(prompt="ab"))[0]
    assert answer.usage.input_tokens + answer.usage.output_tokens <= generator.context


def test_the_same_seed_is_the_same_text_and_none_is_not(mini: Generator) -> None:
    sampled = GenerationRequest(prompt="给我讲个故事", max_tokens=40)
    one, two, other = run(mini, replace(sampled, seed=1), replace(sampled, seed=1), replace(sampled, seed=2))
    assert one.said == two.said != other.said
    assert len({answer.text for answer in run(mini, *[sampled] * 4)}) > 1


def test_a_cancelled_job_is_gone_within_a_step(mini: Generator) -> None:
    gone, stays = submit(mini, GREEDY), submit(mini, GREEDY)
    mini.step()
    mini.cancel(gone)
    events = mini.step()
    assert {event.job for event in events} == {stays}
    mini.cancel(stays)
    mini.cancel(stays)
    assert mini.idle
    assert mini.step() == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerationRequest(prompt="故" * 600), "The prompt has 60[0-9] tokens; .* context of 512 takes 511"),
        (GenerationRequest(prompt="x" * 1_000_000), r"The prompt has at least \d+ tokens"),
        (
            replace(GREEDY, max_tokens=600),
            "max_tokens: 600 more tokens after a prompt of 10 .* at most 502 do",
        ),
        (GenerationRequest(messages=(Message("user", "\x00" * 511),)), "The prompt has"),
    ],
)
def test_what_cannot_fit_is_refused_with_both_lengths(
    mini: Generator, request_: GenerationRequest, message: str
) -> None:
    with pytest.raises(ValidationFailed, match=message):
        submit(mini, request_)
    assert mini.idle


@pytest.mark.parametrize("kind", ["plain", "grouped", "fused"])
def test_the_cache_is_bounded(bundle: Callable[[str], Path], kind: str) -> None:
    """Room for three short rows: the others wait, a request that never fits is refused, none fails."""
    row = 3 * 64 * 4 * 2 * 2 * 16 * 2
    generator = Generator(bundle(kind), "model.onnx", Limits(rows=8, cache_bytes=4 * row))
    most = 0
    answers = {
        submit(generator, GenerationRequest(prompt="ab", max_tokens=40, seed=n)): Answer() for n in range(7)
    }
    with pytest.raises(ValidationFailed, match=r"max_tokens: .* bytes"):
        Generator(bundle(kind), "model.onnx", Limits(cache_bytes=row)).prepare(GenerationRequest(prompt="ab"))
    while not generator.idle:
        for event in generator.step():
            answers[event.job].add(event)
        most = max(most, sum(lane._rows._cache.nbytes for lane in generator._lanes))
    assert 0 < most <= 2 * row
    assert all(answer.reason for answer in answers.values())
    generator.close()


def test_a_run_that_fails_fails_its_rows_only(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = opened("learned")
    request = GenerationRequest(prompt="ab", max_tokens=20)
    whole = run(generator, request)[0].said
    jobs = {submit(generator, request): Answer() for _ in range(2)}
    for event in generator.step():
        jobs[event.job].add(event)

    def broken(*_: Any) -> None:
        raise ModelFailed("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(generator._graph, "run", broken)
        events = generator.step()
    assert [(event.job, type(event)) for event in events] == [(job, Failed) for job in jobs]
    assert generator.idle
    assert run(generator, request)[0].said == whole


def test_logits_that_are_not_numbers_fail_their_row_only(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened("plain")
    request = GenerationRequest(prompt="ab", max_tokens=20)
    whole = run(generator, request)[0].said
    answers = {submit(generator, request): Answer() for _ in range(2)}
    bad = next(iter(answers))
    for event in generator.step():
        answers[event.job].add(event)
    rows = generator._lanes[0]._rows
    step = rows.step

    def poisoned(tokens: list[int]) -> Any:
        logits = step(tokens)
        logits[0] = np.nan
        return logits

    with monkeypatch.context() as patched:
        patched.setattr(rows, "step", poisoned)
        for event in generator.step():
            answers[event.job].add(event)
    finish(generator, answers)
    assert isinstance(answers.pop(bad).error, ModelFailed)
    assert [answer.said for answer in answers.values()] == [whole]


def broken_folder(folder: Path, source: Path, name: str, content: bytes | None) -> Path:
    shutil.copytree(source, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"\x08\x09garbage", "model.onnx does not load"),
        ("model.onnx", b"", "model.onnx does not load"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("config.json", b"{}", "context"),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}', "chat template"),
    ],
)
def test_a_broken_folder_says_what_is_broken(
    bundle: Callable[[str], Path], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = broken_folder(tmp_path / "model", bundle("plain"), name, content)
    with pytest.raises(ValidationFailed, match=message):
        Generator(folder, "model.onnx", Limits())
