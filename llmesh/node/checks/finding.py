"""One thing that was looked at, how it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Finding", "Level"]

Level: TypeAlias = Literal["ok", "warn", "fail"]
"""All is well; it works, but not as it might; it does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` says what was found, `next_step` what to do; it is empty where there is nothing to do."""

    level: Level
    subject: str
    text: str
    next_step: str = ""
