"""Sampling: against a plain reference, by frequencies, and independent of the batch."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmesh.runtime.generation.graph import Floats
from llmesh.runtime.generation.sampling import NO_CHOICE, Chooser, Sampling, choose, choose_again

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.2, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 3, 40, 64, 65, 500]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, 99),
)


def logits_of(seed: int, rows: int, count: int, spread: float) -> Floats:
    return (np.random.default_rng(seed).normal(size=(rows, count)) * spread).astype(np.float32)


def reference(logits: Floats, chooser: Chooser, seen: set[int]) -> int:
    """One row, one token at a time, in the order of the definition."""
    sampling = chooser.sampling
    penalty = np.float32(sampling.repetition_penalty)
    values = [
        float(v / penalty if v > 0 else v * penalty) if n in seen else float(v) for n, v in enumerate(logits)
    ]
    ranked = sorted(range(len(values)), key=lambda n: (-values[n], n))
    if sampling.temperature == 0:
        return ranked[0]
    ranked = ranked[: sampling.top_k or len(ranked)]
    weights = [math.exp((values[n] - values[ranked[0]]) / sampling.temperature) for n in ranked]
    total, kept, running = sum(weights), 0, 0.0
    while running < sampling.top_p * total and kept < len(weights):
        running += weights[kept]
        kept += 1
    target, running = chooser.draw * (running if sampling.top_p < 1 else total), 0.0
    for n, weight in zip(ranked, weights, strict=True):
        running += weight
        if running > target:
            return n
    return ranked[kept - 1]


@given(
    st.integers(0, 10_000),
    st.lists(SAMPLINGS, min_size=1, max_size=5),
    st.sampled_from([3, 64, 65, 300, 1500]),
    st.sampled_from([0.1, 1.0, 6.0]),
)
def test_choices_are_those_of_the_definition(
    seed: int, samplings: list[Sampling], count: int, spread: float
) -> None:
    logits = logits_of(seed, len(samplings), count, spread)
    seen = set(range(0, count, 7))
    choosers = [Chooser(one, seen) for one in samplings]
    for row, chooser, choice in zip(logits, choosers, choose(logits.copy(), choosers, 1e-9), strict=True):
        expected = reference(row, chooser, seen)
        assert choice.token == expected or choice.close


@given(st.integers(0, 10_000), st.lists(SAMPLINGS, min_size=2, max_size=6))
def test_a_row_chooses_as_it_would_alone(seed: int, samplings: list[Sampling]) -> None:
    logits = logits_of(seed, len(samplings), 700, 2.0)
    together = choose(logits.copy(), [Chooser(one, [3]) for one in samplings], 0.0)
    alone = [
        choose(row[None].copy(), [Chooser(one, [3])], 0.0)[0]
        for row, one in zip(logits, samplings, strict=True)
    ]
    assert together == alone


@given(st.integers(0, 10_000), SAMPLINGS, st.floats(1e-7, 1e-3))
def test_what_noise_could_change_is_called_close(seed: int, sampling: Sampling, noise: float) -> None:
    logits = logits_of(seed, 1, 300, 1.0)
    shaken = (
        logits + (np.random.default_rng(seed).uniform(-noise, noise, logits.shape)).astype(np.float32) / 2
    )
    first = choose(logits.copy(), [Chooser(sampling, [])], noise)[0]
    second = choose(shaken, [Chooser(sampling, [])], 0.0)[0]
    assert first.close or first.token == second.token


def test_choosing_again_uses_the_same_draw() -> None:
    chooser = Chooser(Sampling(1.0, repetition_penalty=1.2, seed=4), [1, 2])
    logits = logits_of(1, 1, 50, 1.0)
    for _ in range(20):
        first = choose(logits.copy(), [chooser], 0.0)[0]
        assert choose_again(logits[0].copy(), chooser) == first


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    chooser = Chooser(Sampling(1.0, top_p=0.9, seed=1), [])
    counts = Counter(choose(logits.copy(), [chooser], 0.0)[0].token for _ in range(4000))
    assert set(counts) == {0, 1, 2}
    assert counts[0] / 4000 == pytest.approx(0.5 / 0.95, abs=0.03)
    assert counts[2] / 4000 == pytest.approx(0.15 / 0.95, abs=0.03)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_give_no_choice(broken: float, temperature: float) -> None:
    logits = logits_of(1, 2, 100, 1.0)
    logits[0] = broken
    found = choose(logits, [Chooser(Sampling(temperature), []) for _ in range(2)], 0.0)
    assert found[0] == NO_CHOICE
    assert found[1] != NO_CHOICE


@settings(max_examples=20)
@given(st.integers(0, 100))
def test_tokens_noted_are_penalised(seed: int) -> None:
    logits = np.abs(logits_of(seed, 1, 50, 1.0))
    chooser = Chooser(Sampling(repetition_penalty=1000.0), [])
    found = set()
    for _ in range(10):
        token = choose(logits.copy(), [chooser], 0.0)[0].token
        chooser.note(token)
        found.add(token)
    assert len(found) == 10
