from __future__ import annotations

import pytest

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId
from llmesh.core.model import Card
from llmesh.core.pricing import FREE, charge, check_quote
from llmesh.errors import ModelNotFound

OFFER = Offer(ModelId("a" * 64), Card("senti"), "text-classification", Amount.parse("0.2"))


@pytest.mark.parametrize("quote", ["0.2", "0.200001", "7"])
def test_a_quote_that_covers_the_fee_is_taken(quote: str) -> None:
    check_quote(OFFER, Amount.parse(quote))


def test_a_quote_below_the_fee_names_both() -> None:
    with pytest.raises(ModelNotFound, match=r"senti costs 0\.2 MESH here, above the quote of 0\.199999"):
        check_quote(OFFER, Amount.parse("0.199999"))


def test_a_fee_that_rose_leaves_the_next_candidate_open() -> None:
    assert ModelNotFound("", remote=True).try_next()


def test_nothing_delivered_nothing_charged() -> None:
    assert charge(OFFER, 0) == FREE
    assert charge(OFFER, 1) == charge(OFFER, 9) == OFFER.fee
