"""One request for text as data: prompt or messages, and how to sample.  Strict: what is wrong is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from llmesh.core.encoding import Value
from llmesh.errors import ValidationFailed

__all__ = ["ROLES", "GenerationRequest", "Message"]

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 1024
MOST_CHARACTERS = 4 << 20
MOST_STOPS = 16
MOST_STOP_LENGTH = 256
MOST_TOKENS = 1 << 20

_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")
_PROMPTS = ("text", "prompt", "messages")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Exactly one of `prompt` (plain text) and `messages` is given; None means the model's own default."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Value]) -> Self:
        """Read a request from named values; `text` and `prompt` are the same thing.

        Raises ValidationFailed that names the field: unknown, of the wrong type, or out of its range.
        """
        for name in values:
            if name not in _SAMPLING and name not in _PROMPTS:
                known = ", ".join((*_PROMPTS, *_SAMPLING))
                raise ValidationFailed(f"{name[:60]!r} is not a field of text generation: {known} are.")
        given = [name for name in _PROMPTS if values.get(name) is not None]
        if len(given) != 1:
            raise ValidationFailed(
                "Text generation takes exactly one of text, prompt and messages,"
                f" not {' and '.join(given) or 'none of them'}."
            )
        messages = given == ["messages"]
        return cls(
            prompt=None if messages else _text(values[given[0]], given[0]),
            messages=_messages(values["messages"]) if messages else (),
            max_tokens=_whole(values, "max_tokens", 1, MOST_TOKENS),
            temperature=_number(values, "temperature", 0.0, 100.0),
            top_p=_number(values, "top_p", 0.0, 1.0),
            top_k=_whole(values, "top_k", 0, MOST_TOKENS),
            repetition_penalty=_number(values, "repetition_penalty", 0.01, 100.0),
            stop=_stop(values.get("stop")),
            seed=_whole(values, "seed", 0, (1 << 64) - 1),
        )


def _text(value: Value, field: str) -> str:
    if not isinstance(value, str):
        raise ValidationFailed(f"{field} must be a text, not {type(value).__name__}.")
    if not value:
        raise ValidationFailed(f"{field} is empty: there is nothing to continue or answer.")
    if len(value) > MOST_CHARACTERS:
        raise ValidationFailed(
            f"{field} has {len(value)} characters, more than the {MOST_CHARACTERS} allowed."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationFailed(f"{field} holds half of a surrogate pair.") from None
    return value


def _messages(value: Value) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValidationFailed("messages must be a list of at least one message.")
    if len(value) > MOST_MESSAGES:
        raise ValidationFailed(f"messages has {len(value)} entries, more than the {MOST_MESSAGES} allowed.")
    found: list[Message] = []
    for n, one in enumerate(value):
        if not isinstance(one, dict) or set(one) != {"role", "content"}:
            raise ValidationFailed(f"messages[{n}] must have role and content, and nothing else.")
        role = one["role"]
        if not isinstance(role, str) or role not in ROLES:
            raise ValidationFailed(f"messages[{n}].role must be one of {', '.join(ROLES)}.")
        found.append(Message(role, _text(one["content"], f"messages[{n}].content")))
    if sum(len(one.content) for one in found) > MOST_CHARACTERS:
        raise ValidationFailed(f"messages hold more than {MOST_CHARACTERS} characters together.")
    return tuple(found)


def _stop(value: Value) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MOST_STOPS:
        raise ValidationFailed(f"stop has {len(stops)} entries, more than the {MOST_STOPS} allowed.")
    for one in stops:
        if not isinstance(one, str) or not 0 < len(one) <= MOST_STOP_LENGTH:
            raise ValidationFailed(f"stop must be texts of 1 to {MOST_STOP_LENGTH} characters.")
    return tuple(str(one) for one in stops)


def _whole(values: Mapping[str, Value], field: str, low: int, high: int) -> int | None:
    value = values.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValidationFailed(f"{field} must be a whole number from {low} to {high}.")
    return value


def _number(values: Mapping[str, Value], field: str, low: float, high: float) -> float | None:
    """Zero is allowed for temperature alone, where it means greedy."""
    value = values.get(field)
    if value is None:
        return None
    exclusive = field == "top_p"
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (exclusive and value == low):  # type: ignore[operator]
        above = "above " if exclusive else ""
        raise ValidationFailed(f"{field} must be a number from {above}{low:g} to {high:g}.")
    return float(value)  # type: ignore[arg-type]
