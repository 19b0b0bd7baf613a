from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import MICRO, Amount
from llmesh.errors import ValidationFailed

amounts = st.integers(0, (1 << 128) - 1).map(Amount)


def test_a_tenth_is_exact() -> None:
    assert Amount.parse(0.1).micro == 100_000


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("0", 0),
        ("1000", 1000 * MICRO),
        ("1e-6", 1),
        ("0.1000000000", 100_000),
        ("1E3", 1000 * MICRO),
        (0.3, 300_000),
    ],
)
def test_parse(text: str | float, micro: int) -> None:
    assert Amount.parse(text).micro == micro


@pytest.mark.parametrize(
    "bad",
    [-1, -0.5, "-1", float("nan"), float("inf"), "", "x", "1e-7", 0.0000001, True, None, [1], "1e40",
     "1e99999999", "1e-99999999", "9" * 1000, 1 << 128, "0." + "0" * 5000 + "1"],
)  # fmt: skip
def test_what_is_not_an_amount_is_refused(bad: object) -> None:
    with pytest.raises(ValidationFailed):
        Amount.parse(bad)  # type: ignore[arg-type]


@given(amounts)
def test_text_round_trip(amount: Amount) -> None:
    assert Amount.parse(str(amount)) == amount
    assert Amount.parse(Decimal(str(amount))) == amount
    assert Amount.parse(amount) == amount
    assert str(amount) in repr(amount)


@given(st.integers(0, 1 << 52).map(Amount))
def test_number_round_trip(amount: Amount) -> None:
    assert Amount.parse(amount.to_number()) == amount


@given(amounts, amounts)
def test_sums_are_exact_and_bounded(a: Amount, b: Amount) -> None:
    if a.micro + b.micro < 1 << 128:
        assert (a + b) - b == a
    else:
        with pytest.raises(ValidationFailed):
            a + b
    if a < b:
        with pytest.raises(ValidationFailed):
            a - b


def test_zero_is_false() -> None:
    assert not Amount(0)
    assert Amount(1)
