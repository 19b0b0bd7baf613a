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
_GROUP = 16


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
    return _choose(logits, choosers, noise)


def choose_again(logits: Floats, chooser: Chooser) -> Choice:
    """The same choice from other logits `[vocabulary]` of the same step, written over."""
    chooser.penalise(logits)
    return _choose(logits[None], [chooser], 0.0)[0]


def _choose(logits: Floats, choosers: Sequence[Chooser], noise: float) -> list[Choice]:
    found = [NO_CHOICE] * len(choosers)
    best = logits.argmax(1)
    top = logits[np.arange(len(best)), best]
    # Not-a-number counts as the highest, so one look at the highest is enough.
    sound = np.isfinite(top)
    drawn = [n for n, one in enumerate(choosers) if sound[n] and one.drawing]
    greedy = [n for n, one in enumerate(choosers) if sound[n] and not one.drawing]
    close = _have_rivals(logits, greedy, best, 2 * noise) if noise and greedy else [False] * len(greedy)
    for n, near in zip(greedy, close, strict=True):
        found[n] = Choice(int(best[n]), near)
    for n, choice in zip(drawn, _draw(logits, drawn, choosers, noise), strict=True):
        found[n] = choice
    return found


def _have_rivals(logits: Floats, rows: list[int], best: Array, gap: float) -> list[bool]:
    """Whether another token comes within `gap` of the best; the best are overwritten."""
    tops = logits[rows, best[rows]]
    logits[rows, best[rows]] = -np.inf
    near: list[bool] = (tops - logits.max(1)[rows] <= gap).tolist()
    return near


def _draw(logits: Floats, rows: list[int], choosers: Sequence[Chooser], noise: float) -> list[Choice]:
    if not rows:
        return []
    some = logits if len(rows) == len(logits) else logits[rows]
    drawing = [choosers[row] for row in rows]
    found = _pick(some, _likeliest(some, min(_WIDTH, some.shape[1])), drawing, noise)
    for n, choice in enumerate(found):
        if choice is None:
            one = some[n : n + 1]
            found[n] = _pick(one, np.argsort(-one, axis=1, kind="stable"), drawing[n : n + 1], noise)[0]
    return [choice or NO_CHOICE for choice in found]


def _likeliest(logits: Floats, width: int) -> Array:
    """Tokens of the `width` highest logits of each row, highest first, `[rows, width]`.

    The highest `width` of all lie in the `width` groups with the highest maxima, wherever the
    groups are; to look for these first is four times as fast.
    """
    rows, count = logits.shape
    groups = count // _GROUP
    if groups <= width:
        tokens = np.broadcast_to(np.arange(count), (rows, count))
    else:
        maxima = logits[:, : groups * _GROUP].reshape(rows, _GROUP, groups).max(1)
        chosen = np.argpartition(maxima, -width, axis=1)[:, -width:]
        members = (chosen[:, None] + groups * np.arange(_GROUP)[:, None]).reshape(rows, -1)
        rest = np.broadcast_to(np.arange(groups * _GROUP, count), (rows, count - groups * _GROUP))
        tokens = np.concatenate([members, rest], 1)
    values = np.take_along_axis(logits, tokens, 1)
    kept = np.argpartition(values, -width, axis=1)[:, -width:]
    tokens = np.take_along_axis(tokens, kept, 1)
    # Equal logits rank by token id, so that the order is the row's own.
    tokens.sort(axis=1)
    order = np.argsort(-np.take_along_axis(logits, tokens, 1), axis=1, kind="stable")
    ranked: Array = np.take_along_axis(tokens, order, 1)
    return ranked


def _pick(logits: Floats, tokens: Array, choosers: Sequence[Chooser], noise: float) -> list[Choice | None]:
    """Draw for each row from its ranked `tokens`; None where they are too few to tell."""
    width, count = tokens.shape[1], logits.shape[1]
    heat = np.array([[one.sampling.temperature] for one in choosers])
    kept = np.array([min(one.sampling.top_k or count, count) for one in choosers])
    share = np.array([one.sampling.top_p for one in choosers])
    draw = np.array([one.draw for one in choosers])
    values = np.take_along_axis(logits, tokens, 1).astype(np.float64)
    weights = np.exp((values - values[:, :1]) / heat)
    weights[np.arange(width) >= kept[:, None]] = 0
    sums = weights.cumsum(1)
    total = sums[:, -1].copy()
    for n in np.flatnonzero((kept > width) & (kept == count)):
        total[n] = np.exp((logits[n].astype(np.float64) - values[n, 0]) / heat[n]).sum()
    border = np.where(share < 1, share * total, np.inf)
    last = (sums < border[:, None]).sum(1)
    mass = np.where(share < 1, sums[np.arange(len(sums)), np.minimum(last, width - 1)], total)
    target = draw * mass
    place = (sums <= target[:, None]).sum(1)
    short = (kept > width) & ((kept < count) | (place >= width) | ((share < 1) & (last >= width)))
    place = np.minimum(place, np.minimum(kept, width) - 1)
    close = np.zeros(len(tokens), bool)
    if noise:
        slack = 4 * noise / heat * total[:, None]
        close = (
            _near(sums, target, slack) | _near(sums, border, slack) | _have_neighbours(values, place, noise)
        )
    return [
        None if short[n] else Choice(int(tokens[n, place[n]]), bool(close[n])) for n in range(len(tokens))
    ]


def _near(sums: Array, border: Array, slack: Array) -> Array:
    found: Array = (np.abs(sums - border[:, None]) <= slack).any(1)
    return found


def _have_neighbours(values: Array, place: Array, noise: float) -> Array:
    """Whether the token next in rank might as well have stood in its place."""
    steps = np.full((len(values), values.shape[1] + 1), np.inf)
    steps[:, 1:-1] = values[:, :-1] - values[:, 1:]
    rows = np.arange(len(values))
    found: Array = np.minimum(steps[rows, place], steps[rows, place + 1]) <= 2 * noise
    return found
