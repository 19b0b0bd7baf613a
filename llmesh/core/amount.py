"""Money: whole micro-MESH, never a float.  1 MESH = 1 000 000 micro-MESH."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Self

from llmesh.errors import ValidationFailed

__all__ = ["MICRO", "Amount"]

MICRO = 1_000_000
_LIMIT = 1 << 128


@dataclass(frozen=True, order=True, slots=True)
class Amount:
    """A sum of MESH, from 0 up to 2**128 - 1 micro-MESH, exact in every operation."""

    micro: int

    def __post_init__(self) -> None:
        if not 0 <= self.micro < _LIMIT:
            raise ValidationFailed(f"An amount must lie between 0 and 2**128 - 1 micro-MESH, not {self.micro}.")

    @classmethod
    def parse(cls, mesh: str | int | float | Decimal | Amount) -> Self:
        """The amount written as MESH: `0.1` becomes exactly 100 000 micro-MESH.

        A float means the decimal it prints as.  Raises ValidationFailed for what is not a number,
        is negative, or is finer than a micro-MESH.
        """
        if isinstance(mesh, Amount):
            return cls(mesh.micro)
        if isinstance(mesh, bool) or not isinstance(mesh, str | int | float | Decimal):
            raise ValidationFailed(f"An amount of MESH must be a number, not {mesh!r}.")
        return cls(_whole_micro(mesh))

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.micro + other.micro)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.micro - other.micro)

    def __bool__(self) -> bool:
        return self.micro > 0

    def __str__(self) -> str:
        """Plain decimal MESH without trailing zeros: `0.1`, `1000`."""
        whole, part = divmod(self.micro, MICRO)
        return f"{whole}.{part:06d}".rstrip("0") if part else str(whole)

    def __repr__(self) -> str:
        return f"Amount({str(self)!r})"

    def to_number(self) -> int | float:
        """The JSON number that prints as this amount; exact below 2**53 micro-MESH."""
        return float(str(self)) if self.micro % MICRO else self.micro // MICRO


def _whole_micro(mesh: str | int | float | Decimal) -> int:
    try:
        number = Decimal(repr(mesh) if isinstance(mesh, float) else mesh)
    except InvalidOperation:
        raise ValidationFailed(f"An amount of MESH must be a decimal number, not {mesh!r}.") from None
    if not number.is_finite() or number < 0:
        raise ValidationFailed(f"An amount of MESH must be zero or more, not {mesh}.")
    if number.adjusted() > 32:
        raise ValidationFailed(f"An amount of MESH must be below 2**128 micro-MESH, not {mesh}.")
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    value = int("".join(map(str, digits)))
    shift = exponent + 6
    if shift >= 0:
        return value * 10**shift
    whole, rest = divmod(value, 10**-shift) if -shift <= len(digits) else (0, value)
    if rest:
        raise ValidationFailed(f"An amount has at most six decimals, not {mesh}.")
    return whole
