from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk
from llmesh.core.model import Card
from llmesh.core.pricing import FREE, check_quote, cut_fee
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


def test_what_is_cut_costs_the_share_that_was_delivered() -> None:
    fee, four = Amount(1_000), [Chunk(0, "a", (1, 2)), Chunk(1, "b", (3,)), Chunk(2, "c")]
    assert cut_fee(fee, {"max_tokens": 40}, []) == FREE
    assert cut_fee(fee, {"max_tokens": 40}, four) == Amount(100)
    assert cut_fee(fee, {"max_tokens": 3}, four) == fee, "never more than the fee"
    assert cut_fee(fee, {"max_tokens": 30}, four[:1]) == Amount(67), "rounded up"
    assert cut_fee(fee, {}, four) == Amount(8), "4 of 512"
    assert cut_fee(fee, {"max_tokens": "many"}, four) == Amount(8)
    assert cut_fee(fee, {"max_tokens": 40}, [Chunk(0, values={"label": "x"})]) == fee, "that is all of it"


@given(st.integers(1, 10**12), st.integers(1, 10**6), st.integers(1, 20))
def test_any_delivery_costs_something_within_the_fee(fee: int, most: int, chunks: int) -> None:
    cost = cut_fee(Amount(fee), {"max_tokens": most}, [Chunk(n, "x", (1,)) for n in range(chunks)])
    assert 0 < cost.micro <= fee
    assert (cost.micro - 1) * most < fee * chunks
