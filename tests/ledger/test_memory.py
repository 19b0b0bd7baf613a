from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId, RequestId
from llmesh.errors import ValidationFailed
from llmesh.ledger import memory
from llmesh.ledger.ledger import Ledger
from llmesh.ledger.memory import MemoryLedger

A, B = PeerId("A"), PeerId("B")
peers = st.sampled_from([A, B])
requests = st.sampled_from([RequestId(c * 32) for c in "0123"])


@given(st.lists(st.tuples(peers, peers, st.integers(0, 10**9), requests)))
def test_earnings_are_the_sum_of_distinct_requests(fees: list[tuple[PeerId, PeerId, int, RequestId]]) -> None:
    async def earn_all() -> dict[PeerId, int]:
        ledger: Ledger = MemoryLedger()
        for provider, payer, micro, request in fees:
            await ledger.earn(provider, payer, Amount(micro), request)
        return {peer: (await ledger.earnings(peer)).micro for peer in (A, B)}

    first = {}
    for provider, payer, micro, request in fees:
        first.setdefault((provider, payer, request), micro)
    assert trio.run(earn_all) == {p: sum(m for key, m in first.items() if key[0] == p) for p in (A, B)}


@given(st.lists(st.tuples(peers, st.integers(0, 10**12))))
def test_stake_is_the_sum_of_bonds(bonds: list[tuple[PeerId, int]]) -> None:
    async def bond_all() -> dict[PeerId, int]:
        ledger: Ledger = MemoryLedger()
        for peer, micro in bonds:
            await ledger.bond(peer, Amount(micro))
        return {peer: (await ledger.stake(peer)).micro for peer in (A, B)}

    assert trio.run(bond_all) == {p: sum(m for peer, m in bonds if peer == p) for p in (A, B)}


async def test_what_does_not_fit_changes_nothing() -> None:
    ledger = MemoryLedger()
    most = Amount((1 << 128) - 1)
    await ledger.earn(A, B, most, RequestId("1"))
    for _ in range(2):
        with pytest.raises(ValidationFailed):
            await ledger.earn(A, B, Amount(1), RequestId("2"))
    assert await ledger.earnings(A) == most


async def test_memory_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_REMEMBERED", 2)
    ledger = MemoryLedger()
    for request in "1232":
        await ledger.earn(A, B, Amount(1), RequestId(request))
    assert await ledger.earnings(A) == Amount(3)
    await ledger.earn(A, B, Amount(1), RequestId("1"))  # long forgotten
    assert await ledger.earnings(A) == Amount(4)
