"""How often something may be done: the settings of the rate limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from llmesh.errors import ValidationFailed

__all__ = ["NO_RATES", "Rate", "Rates", "read_rates"]

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)\Z")


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in any window of so many seconds."""

    count: int
    seconds: int

    def __str__(self) -> str:
        unit = next((name for name, seconds in _UNITS.items() if seconds == self.seconds), None)
        return f"{self.count}/{unit or f'{self.seconds} s'}"


@dataclass(frozen=True, slots=True)
class Rates:
    """Inferences per address, deployments per node, calls per key (per address without one).

    None is no limit.  The defaults are the contract's.
    """

    inference: Rate | None = Rate(100, 60)
    deploy: Rate | None = Rate(10, 3600)
    api: Rate | None = Rate(1000, 3600)


NO_RATES = Rates(None, None, None)
_NAMES = [field.name for field in fields(Rates)]


def read_rates(text: str) -> Rates:
    """`on`, `off`, or changes to the defaults such as `inference=500/minute,api=off`.

    Raises ValidationFailed.
    """
    if text in ("on", "off"):
        return Rates() if text == "on" else NO_RATES
    rates = Rates()
    for part in text.split(","):
        name, _, rate = (piece.strip() for piece in part.partition("="))
        if name not in _NAMES:
            raise ValidationFailed(
                f"Rate limits are on, off, or NAME=COUNT/UNIT of {', '.join(_NAMES)}, not {part[:40]!r}."
            )
        rates = replace(rates, **{name: _rate(rate)})
    return rates


def _rate(text: str) -> Rate | None:
    if text == "off":
        return None
    found = _RATE.match(text)
    if found is None:
        raise ValidationFailed(
            f"A rate is a count per second, minute, hour or day, such as 100/minute, not {text[:40]!r}."
        )
    return Rate(int(found[1]), _UNITS[found[2]])
