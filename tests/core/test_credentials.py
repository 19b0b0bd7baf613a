"""Who answers for an offer is known by signatures, and only for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.credentials import payee_of
from llmesh.core.ids import ModelId
from llmesh.core.model import Card
from llmesh.core.terms import PERIOD, terms_digest
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed
from tests.mesh.people import CHAIN, START, credentials, peer, signer

ANN, BOB = credentials("ann"), credentials("bob")
OFFER = Offer(ModelId("a" * 64), Card("senti"), "echo", Amount(7))
PRICED = replace(OFFER, terms=ANN.terms(OFFER, START))
SAID = Announcement(peer("ann"), 1, (), (PRICED,), Amount(0), START, START + 9, ANN.binding(START))


def test_an_announced_offer_names_its_account_and_ledger() -> None:
    payee = payee_of(SAID, PRICED, START)
    assert (payee.account, payee.chain, payee.terms) == (signer("ann").address, CHAIN, PRICED.terms)
    free = replace(OFFER, fee=Amount(0))
    assert payee_of(replace(SAID, offers=(free,)), free, START).terms is None


@given(st.integers(0, PERIOD), st.integers(0, PERIOD))
def test_what_is_signed_is_good_for_at_least_a_period(at: int, later: int) -> None:
    offer = replace(OFFER, terms=ANN.terms(OFFER, START + at))
    announcement = replace(SAID, account=ANN.binding(START + at))
    assert payee_of(announcement, offer, START + at + later - 1).terms == offer.terms
    digest = terms_digest(offer.terms.terms, CHAIN)  # type: ignore[union-attr]
    assert ANN.known_terms(OFFER, digest, START + at + later) == offer.terms
    assert ANN.known_terms(OFFER, digest, START + at - 1) == offer.terms  # the clock was put back
    assert ANN.known_terms(replace(OFFER, fee=Amount(8)), digest, START + at) is None


@pytest.mark.parametrize(
    ("announcement", "offer"),
    [
        (replace(SAID, account=None), PRICED),
        (SAID, OFFER),
        (SAID, replace(PRICED, fee=Amount(6))),
        (SAID, replace(PRICED, model_id=ModelId("b" * 64))),
        (SAID, replace(PRICED, execution="fp16")),
        (SAID, replace(OFFER, terms=BOB.terms(OFFER, START))),
        (SAID, replace(OFFER, terms=ANN.terms(OFFER, START - 2 * PERIOD))),
        (SAID, replace(OFFER, terms=credentials("ann", Chain(5, CHAIN.contract)).terms(OFFER, START))),
        (replace(SAID, account=ANN.binding(START - 2 * PERIOD)), PRICED),
        (replace(SAID, account=replace(ANN.binding(START), by_node=bytes(64))), PRICED),
        (replace(SAID, account=replace(ANN.binding(START), by_account=bytes(65))), PRICED),
    ],
    ids=range(11),
)
def test_what_is_not_proved_is_refused(announcement: Announcement, offer: Offer) -> None:
    with pytest.raises(ValidationFailed):
        payee_of(announcement, offer, START)
