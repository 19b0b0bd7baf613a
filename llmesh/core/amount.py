"""Money: whole micro-MESH, never a float.  1 MESH = 1 000 000 micro-MESH."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Self

from llmesh.errors import ValidationFailed

__all__ = ["MICRO", "Amount"]

MICRO = 1_000_000
_LIMIT = 1 << 128
# Wide enough for every amount; what it cannot hold exactly is an error, never rounded.
_EXACT = Context(prec=45, Emin=-45, Emax=45, traps=[Inexact, InvalidOperation])


@dataclass(frozen=True, order=True, slots=True)
class Amount:
    """A sum of MESH, from 0 up to 2**128 - 1 micro-MESH, exact in every operation."""

    micro: int

    def __post_init__(self) -> None:
        if not 0 <= self.micro < _LIMIT:
            raise ValidationFailed(
                f"An amount must lie between 0 and 2**128 - 1 micro-MESH, not {self.micro}."
            )

    @classmethod
    def parse(cls, mesh: str | float | Decimal | Amount) -> Self:
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
        number = _EXACT.create_decimal(repr(mesh) if isinstance(mesh, float) else mesh)
        micro = _EXACT.to_integral_exact(_EXACT.multiply(number, Decimal(MICRO)))
    except Inexact:
        raise ValidationFailed(
            "An amount of MESH has at most six decimals and 33 digits before them."
        ) from None
    except InvalidOperation:
        raise ValidationFailed(
            f"An amount of MESH must be a decimal number, not {str(mesh)[:40]!r}."
        ) from None
    if not micro.is_finite() or micro < 0:
        raise ValidationFailed(f"An amount of MESH must be zero or more, not {mesh}.")
    return int(micro)
