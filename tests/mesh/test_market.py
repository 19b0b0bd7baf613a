"""What counts of an announced stake: what this node's ledger shows, for an account that is proved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import nacl.signing
import pytest

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.binding import DOMAIN, KeyBinding, SignedBinding, bind
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.core.typed import Chain
from llmesh.mesh.market import Bonds, Market
from tests.core.banking import ALICE, BOB, CHAIN, SIGN

NOW = 1_900_000_000
OTHER = Chain(CHAIN.id + 1, CHAIN.contract)


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def peer(name: str) -> PeerId:
    return PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed(name)).verify_key)))


def binding(name: str, account: Address, chain: Chain = CHAIN, not_after: int = NOW + 1) -> SignedBinding:
    unsigned = KeyBinding(peer(name), account, chain, not_after)
    return bind(unsigned, lambda record: crypto.sign(seed(name), DOMAIN, record), SIGN[account])


def said(name: str, account: SignedBinding | None, stake: int = 1_000) -> Announcement:
    offer = Offer(ModelId("a" * 64), Card(name), "echo", Amount(0))
    return Announcement(peer(name), 1, (), (offer,), Amount(stake), 0, 1 << 40, account)


class Known:
    """A discovery that knows these announcements."""

    def __init__(self, announcements: Sequence[Announcement]) -> None:
        self.announcements = announcements
        self.asked: list[ModelRef] = []
        self.directory = SimpleNamespace(bounds=SimpleNamespace(offers=100))

    def lookup(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        return [(offer, each) for each in self.announcements for offer in each.offers]

    def search(self, part: str, max_fee: Amount | None, limit: int) -> list[tuple[Offer, Announcement]]:
        return self.lookup(ModelRef(part))[:limit]

    async def find(self, ref: ModelRef) -> None:
        self.asked.append(ref)


def market(stakes: dict[Address, int], *announcements: Announcement, least: int = 0) -> Market:
    known: Any = Known(announcements)
    bonds = Bonds(CHAIN, Amount(least), lambda owner: Amount(stakes.get(owner, 0)))
    return Market(peer("me"), known, bonds, lambda: NOW)


def found(market: Market) -> dict[PeerId, int]:
    looked = {each.peer_id: each.stake.micro for _, each in market.lookup(ModelRef("x"))}
    assert looked == {each.peer_id: each.stake.micro for _, each in market.search("x", None, 100)}
    return looked


def test_a_claim_counts_as_far_as_the_ledger_shows_it() -> None:
    modest, boaster = said("modest", binding("modest", ALICE), 70), said("boaster", binding("boaster", BOB))
    assert found(market({ALICE: 100, BOB: 40}, modest, boaster)) == {peer("modest"): 70, peer("boaster"): 40}


def test_a_claim_is_counted_anew_as_the_ledger_changes() -> None:
    stakes = {ALICE: 100}
    there = market(stakes, said("ann", binding("ann", ALICE)))
    assert found(there) == {peer("ann"): 100}
    stakes[ALICE] = 3
    assert found(there) == {peer("ann"): 3}


forged = replace(binding("ann", ALICE), by_node=bytes(64))
borrowed = replace(binding("ann", BOB), by_account=binding("ann", ALICE).by_account)


@pytest.mark.parametrize(
    "account",
    [None, binding("ann", ALICE, OTHER), binding("ann", ALICE, not_after=NOW), forged, borrowed],
    ids=["none", "another ledger's", "expired", "not by the node", "not by the account"],
)
def test_the_stake_of_a_foreign_provider_counts_for_nothing(account: SignedBinding | None) -> None:
    there = market({ALICE: 100, BOB: 100}, said("ann", account), least=50)
    assert there.is_foreign(said("ann", account))
    assert found(there) == {peer("ann"): 0}, "it is found all the same: it may serve for nothing"


def test_a_member_without_the_least_stake_offers_nothing() -> None:
    rich, poor = said("rich", binding("rich", ALICE)), said("poor", binding("poor", BOB))
    there = market({ALICE: 50, BOB: 49}, rich, poor, least=50)
    assert found(there) == {peer("rich"): 50}
    assert not there.is_foreign(poor)


def test_this_nodes_own_word_is_taken() -> None:
    own = said("me", None, 5)
    there = market({}, own, least=50)
    assert not there.is_foreign(own)
    assert there.counted(own) == own


async def test_it_searches_through_discovery() -> None:
    known: Any = Known([said("ann", binding("ann", ALICE))] * 3)
    there = Market(peer("me"), known, Bonds(CHAIN, Amount(0), lambda owner: Amount(0)), lambda: NOW)
    await there.find(ModelRef("x"))
    assert known.asked == [ModelRef("x")]
    assert len(there.search("x", None, 2)) == 2
