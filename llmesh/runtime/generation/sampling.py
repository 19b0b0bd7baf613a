"""Choosing the next token of many rows at once: penalty, temperature, top-k, top-p, in that order.

Top-p is Holtzman et al. 2020 (nucleus sampling), the penalty Keskar et al. 2019 (CTRL).  A row's
choice depends on its own logits, settings and random numbers only, never on its batch-mates'.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmesh.runtime.generation.graph import Array, Floats

__all__ = ["Choice", "Chooser", "Sampling", "choose", "choose_again"]

_WIDTH = 64
"""So many of the likeliest tokens settle nearly every choice; where they do not, the row is sorted whole."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token; `seed` is of 64 bits."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """`close` says that moving a logit by `noise` might have made it another token."""

    token: int
    close: bool


NO_CHOICE = Choice(-1, False)
"""Of logits that are not numbers there is none."""


class Chooser:
    """The settings, the random numbers and the tokens seen of one row."""

    def __init__(self, sampling: Sampling, seen: Iterable[int]) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)  # noqa: S311 - repeatable on purpose
        self._known = set(seen)
        self._seen = np.fromiter(self._known, np.int64, len(self._known))
        self.draw = 0.0

    @property
    def drawing(self) -> bool:
        """Whether chance has a say."""
        return self.sampling.temperature > 0

    def turn(self) -> None:
        """Draw the random number of the next token; a token chosen again is chosen with the same."""
        if self.drawing:
            self.draw = self._random.random()

    def penalise(self, logits: Floats) -> None:
        """Push the tokens seen away from being chosen again, in place."""
        penalty = self.sampling.repetition_penalty
        if penalty != 1.0:
            found = logits[self._seen]
            logits[self._seen] = np.where(found > 0, found / penalty, found * penalty)

    def note(self, token: int) -> None:
        """Remember a token that was chosen."""
        if self.sampling.repetition_penalty != 1.0 and token not in self._known:
            self._known.add(token)
            self._seen = np.append(self._seen, token)


def choose(logits: Floats, choosers: Sequence[Chooser], noise: float) -> list[Choice]:
    """The next token of each row of `logits` `[rows, vocabulary]`, which is written over."""
    for row, chooser in zip(logits, choosers, strict=True):
        chooser.turn()
        chooser.penalise(row)
    found = [NO_CHOICE] * len(choosers)
    sound = np.isfinite(logits.max(1))
    greedy = [n for n, one in enumerate(choosers) if sound[n] and not one.drawing]
    drawn = [n for n, one in enumerate(choosers) if sound[n] and one.drawing]
    for n, choice in zip(greedy, _highest(logits, greedy, noise), strict=True):
        found[n] = choice
    for n, choice in zip(drawn, _draw(logits, drawn, choosers, noise), strict=True):
        found[n] = choice
    return found


def choose_again(logits: Floats, chooser: Chooser) -> Choice:
    """The same choice from other logits `[vocabulary]` of the same step, written over."""
    chooser.penalise(logits)
    pick = _draw(logits[None], [0], [chooser], 0.0) if chooser.drawing else _highest(logits[None], [0], 0.0)
    return pick[0]


def _highest(logits: Floats, rows: list[int], noise: float) -> list[Choice]:
    if not rows:
        return []
    some = logits if len(rows) == len(logits) else logits[rows]
    best = some.argmax(1)
    if noise == 0:
        return [Choice(int(token), False) for token in best]
    at = np.arange(len(rows))
    top = some[at, best]
    some[at, best] = -np.inf
    close = top - some.max(1) <= 2 * noise
    some[at, best] = top
    return [Choice(int(token), bool(near)) for token, near in zip(best, close, strict=True)]


def _draw(logits: Floats, rows: list[int], choosers: Sequence[Chooser], noise: float) -> list[Choice]:
    if not rows:
        return []
    width = min(_WIDTH, logits.shape[1])
    some = logits[rows]
    likeliest = np.argpartition(some, -width, axis=1)[:, -width:]
    # Equal logits rank by token id, so that the order is the row's own.
    likeliest.sort(axis=1)
    values = np.take_along_axis(some, likeliest, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    likeliest = np.take_along_axis(likeliest, order, 1)
    values = np.take_along_axis(values, order, 1).astype(np.float64)
    found = []
    for n, row in enumerate(rows):
        chooser = choosers[row]
        choice = _pick(values[n], likeliest[n], some[n], chooser, noise)
        found.append(choice or _pick_from_all(some[n], chooser, noise))
    return found


def _pick_from_all(logits: Floats, chooser: Chooser, noise: float) -> Choice:
    order = np.argsort(-logits, kind="stable")
    return _pick(logits[order].astype(np.float64), order, logits, chooser, noise) or NO_CHOICE


def _pick(values: Array, tokens: Array, logits: Floats, chooser: Chooser, noise: float) -> Choice | None:
    """Draw from tokens ranked by `values`; None where they are too few to tell."""
    sampling, count = chooser.sampling, len(logits)
    kept = min(sampling.top_k or count, count)
    enough = kept <= len(values)
    if sampling.top_k and not enough:
        return None
    weights = np.exp((values[:kept] - values[0]) / sampling.temperature)
    sums = weights.cumsum()
    total = float(sums[-1]) if enough else _mass(logits, values[0], sampling.temperature)
    nucleus = total
    if sampling.top_p < 1:
        last = int(np.searchsorted(sums, sampling.top_p * total))
        if last >= len(sums) and not enough:
            return None
        nucleus = float(sums[min(last, len(sums) - 1)])
    place = int(np.searchsorted(sums, chooser.draw * nucleus, side="right"))
    if place >= len(sums) and not enough:
        return None
    place = min(place, len(sums) - 1)
    close = noise > 0 and _is_close(values, sums, total, place, chooser, noise)
    return Choice(int(tokens[place]), close)


def _mass(logits: Floats, top: float, temperature: float) -> float:
    return float(np.exp((logits.astype(np.float64) - top) / temperature).sum())


def _is_close(values: Array, sums: Array, total: float, place: int, chooser: Chooser, noise: float) -> bool:
    """Whether a border of the draw, or a neighbour in rank, is within what `noise` can move."""
    sampling = chooser.sampling
    slack = 4 * noise / sampling.temperature * total
    borders = [chooser.draw * total]
    if sampling.top_p < 1:
        last = min(int(np.searchsorted(sums, sampling.top_p * total)), len(sums) - 1)
        borders = [chooser.draw * float(sums[last]), sampling.top_p * total]
    if any(bool((np.abs(sums - border) <= slack).any()) for border in borders):
        return True
    ranked = values[max(place - 1, 0) : place + 2]
    return bool((np.diff(-ranked) <= 2 * noise).any())
