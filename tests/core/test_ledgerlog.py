"""The log: whoever reads it comes to the same books, and no byte of it can be changed unseen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmesh.core import ledgerlog
from llmesh.core import operations as ops
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Books
from llmesh.core.encoding import Json, canonical_json, parse_canonical_json
from llmesh.core.evidence import Equivocation
from llmesh.core.genesis import Genesis, read_genesis, sign_genesis
from llmesh.core.invite import Credit, sign_credit
from llmesh.core.ledgerlog import (
    Head,
    SignedEntry,
    append,
    first_head,
    follow,
    forked,
    ledger_time,
    read_entry,
    verify,
)
from llmesh.core.operations import Operation, operation_from_json, operation_to_json
from llmesh.core.voucher import ChannelId, channel_id
from llmesh.errors import MeshError, ValidationFailed

from .banking import ALICE, BOB, CAROL, CHAIN, GENESIS, ISSUER, SIGN, START, Bank, claim_of, config
from .oracle import eip712_digest
from .test_rules import CREDIT, receipt

PEOPLE = [ISSUER, ALICE, BOB, CAROL]


def whole_life() -> list[tuple[Address, Operation, int]]:
    """Every operation at least once, with the seconds that pass before it."""
    channel, other = config(ALICE, BOB), config(ALICE, BOB, salt=1)
    mark = channel_id(channel, CHAIN)
    return [
        (ISSUER, ops.Mint(CAROL, Amount(500)), 0),
        (CAROL, ops.Redeem(CREDIT), 1),
        (CAROL, ops.Transfer(ALICE, Amount(100)), 0),
        (ALICE, ops.Deposit(channel, Amount(400)), 1),
        (ALICE, ops.Deposit(other, Amount(100)), 0),
        (BOB, ops.Claim((claim_of(channel, 200, 150), claim_of(other, 9, 9))), 5),
        (BOB, ops.Settle(BOB), 0),
        (ALICE, ops.InitiateWithdraw(mark, Amount(50)), 0),
        (ALICE, ops.FinalizeWithdraw(mark), 900),
        (BOB, ops.Refund(mark, Amount(10)), 0),
        (ALICE, ops.Bond(Amount(200)), 0),
        (ALICE, ops.StartUnbond(Amount(50)), 0),
        (ALICE, ops.Withdraw(), 3600),
        (CAROL, ops.Slash(ops_evidence()), 0),
    ]


def ops_evidence() -> Equivocation:
    return Equivocation(receipt(b"x"), receipt(b"y"))


@cache
def lived() -> Bank:
    bank = Bank()
    for actor, operation, later in whole_life():
        bank.now += later
        bank.do(actor, operation)
        assert bank.books.held == bank.books.minted
    return bank


def same_books(one: Books, other: Books) -> bool:
    return (one.accounts, one.channels, one.marks, one.minted) == (
        other.accounts,
        other.channels,
        other.marks,
        other.minted,
    )


def test_the_log_rebuilds_the_books() -> None:
    bank = lived()
    assert {type(operation) for _, operation, _ in whole_life()} == set(ops.Operation.__args__)
    books, head = verify(GENESIS, bank.records)
    assert same_books(books, bank.books)
    assert head == bank.head


def test_every_prefix_is_a_log() -> None:
    records = lived().records
    for length in range(len(records) + 1):
        assert verify(GENESIS, records[:length])[1].sequence == length


def test_every_flipped_byte_is_found() -> None:
    records = lived().records
    for number, (payload, signature) in enumerate(records):
        before = Bank()
        for signed in lived().log[:number]:
            before.books.take(follow(before.books, before.head, signed))
            before.head = signed.head
        for position in range(len(payload) + len(signature)):
            changed = bytearray(payload + signature)
            changed[position] ^= 1 + position % 255
            with pytest.raises(ValidationFailed):
                follow(before.books, before.head, read_entry(bytes(changed[:-65]), bytes(changed[-65:])))


def test_entries_left_out_repeated_or_swapped_are_found() -> None:
    records = lived().records
    for wrong in (
        records[1:],
        [*records[:3], *records[2:]],
        [records[1], records[0]],
        records[:2] + records[3:],
    ):
        with pytest.raises(ValidationFailed, match="does not follow"):
            verify(GENESIS, wrong)


def test_a_log_of_another_genesis_is_refused() -> None:
    other = sign_genesis(replace(GENESIS.genesis, created_at=START - 1), SIGN[ISSUER])
    with pytest.raises(ValidationFailed):
        verify(other, lived().records)


def test_an_issuer_that_breaks_a_rule_is_found_by_every_follower() -> None:
    """Entries that it signs itself: stolen money, money from nowhere, a time that runs back."""
    bank = Bank()
    theft = ops.SignedOperation(ALICE, 1, ops.Transfer(ISSUER, Amount(10)), bytes(65))
    spent = bank.signed(BOB, ops.Transfer(ISSUER, Amount(10)))
    for operation in (theft, spent):
        with pytest.raises(ValidationFailed):
            follow(bank.books, bank.head, forge(bank, operation, bank.head, bytes(32), START))
    honest = bank.signed(ALICE, ops.Transfer(BOB, Amount(10)))
    entry, changes = append(bank.books, bank.head, honest, START, SIGN[ISSUER])
    with pytest.raises(ValidationFailed, match="lead"):
        follow(bank.books, bank.head, forge(bank, honest, bank.head, bytes(32), START))
    with pytest.raises(ValidationFailed, match="backwards"):
        follow(bank.books, bank.head, forge(bank, honest, bank.head, changes.hash, START - 1))
    assert follow(bank.books, bank.head, entry) == changes


def forge(bank: Bank, operation: ops.SignedOperation, head: Head, result: bytes, at: int) -> SignedEntry:
    """What `append` would sign if it checked nothing."""
    payload = canonical_json(
        {
            "at": at,
            "operation": operation_to_json(operation),
            "previous": head.hash.hex(),
            "result": result.hex(),
            "sequence": head.sequence + 1,
        }
    )
    return read_entry(payload, SIGN[ISSUER](ledgerlog._digest(payload, bank.books.genesis.chain)))


def test_an_entry_that_the_issuer_did_not_sign_is_refused() -> None:
    bank = Bank()
    entry, _ = append(bank.books, bank.head, bank.signed(ALICE, ops.Bond(Amount(1))), START, SIGN[ALICE])
    with pytest.raises(ValidationFailed, match="issuer"):
        follow(bank.books, bank.head, entry)


def test_two_histories_are_proof_of_fraud() -> None:
    bank = Bank()
    one, _ = append(bank.books, bank.head, bank.signed(ALICE, ops.Bond(Amount(1))), START, SIGN[ISSUER])
    other, _ = append(bank.books, bank.head, bank.signed(ALICE, ops.Bond(Amount(2))), START, SIGN[ISSUER])
    forged, _ = append(bank.books, bank.head, bank.signed(ALICE, ops.Bond(Amount(3))), START, SIGN[ALICE])
    assert forked(one, other, CHAIN)
    assert not forked(one, one, CHAIN)
    with pytest.raises(ValidationFailed):
        forked(one, forged, CHAIN)


# --- time -----------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_stops_the_log_and_harms_nothing() -> None:
    bank = Bank()
    bank.now = START - 1
    with pytest.raises(ValidationFailed, match="backwards"):
        bank.do(ALICE, ops.Bond(Amount(1)))
    bank.now = START
    bank.do(ALICE, ops.Bond(Amount(1)))


def test_the_ledgers_time_is_that_of_the_issuers_running() -> None:
    assert ledger_time(START, 0.9) == START
    assert ledger_time(START, 90.1) == START + 90
    assert ledger_time(START, -5) == START


# --- any sequence of operations -------------------------------------------------------------------

amounts = st.integers(0, 400).map(Amount)
people = st.sampled_from(PEOPLE)
channels = st.builds(config, st.sampled_from([ALICE, BOB]), st.sampled_from([BOB, CAROL]), st.integers(0, 1))
marks = channels.map(lambda c: channel_id(c, CHAIN)) | st.just(ChannelId(bytes(32)))
claims = st.builds(claim_of, channels, st.integers(0, 400), st.integers(0, 400))
credits_ = st.integers(0, 2).map(
    lambda n: sign_credit(Credit(bytes((n,)) * 16, Amount(n * 9), START + n * 500), CHAIN, SIGN[ISSUER])
)
operations = st.one_of(
    st.builds(ops.Mint, people, amounts),
    st.builds(ops.Redeem, credits_),
    st.builds(ops.Transfer, people, amounts),
    st.builds(ops.Deposit, channels, amounts),
    st.builds(ops.Claim, st.lists(claims, max_size=3).map(tuple)),
    st.builds(ops.Settle, people),
    st.builds(ops.Refund, marks, amounts),
    st.builds(ops.InitiateWithdraw, marks, amounts),
    st.builds(ops.FinalizeWithdraw, marks),
    st.builds(ops.Bond, amounts),
    st.builds(ops.StartUnbond, amounts),
    st.just(ops.Withdraw()),
    st.just(ops.Slash(ops_evidence())),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(people, operations, st.sampled_from([0, 0, 1, 1000, 4000])), max_size=40))
def test_money_is_neither_made_nor_lost(steps: list[tuple[Address, Operation, int]]) -> None:
    bank, follower, head = Bank(), Books(GENESIS), first_head(GENESIS)
    for actor, operation, later in steps:
        bank.now += later
        before = dict(bank.books.accounts), dict(bank.books.channels)
        minted, length = bank.books.minted, len(bank.log)
        try:
            bank.do(actor, operation)
        except MeshError:
            assert before == (bank.books.accounts, bank.books.channels)
        assert bank.books.held == bank.books.minted
        assert bank.books.minted == minted or isinstance(operation, ops.Mint)
        if len(bank.log) > length:
            payload, signature = bank.records[-1]
            follower.take(follow(follower, head, read_entry(payload, signature)))
            head = bank.head
    assert same_books(follower, bank.books)


@given(people, operations, st.integers(1, 1 << 40))
@settings(deadline=None)
def test_operations_survive_the_wire(actor: Address, operation: Operation, nonce: int) -> None:
    signed = ops.sign_operation(actor, nonce, operation, CHAIN, SIGN[actor])
    written = canonical_json(operation_to_json(signed))
    assert operation_from_json(parse_canonical_json(written)) == signed
    ops.check_operation(operation_from_json(parse_canonical_json(written)), CHAIN)


# --- forms ----------------------------------------------------------------------------------------

TRANSFER = operation_to_json(lived().log[2].entry.operation)


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "-1"}, {"amount": "1.5"}, {"amount": "1e3"}, {"amount": "01"}, {"amount": 1},
        {"amount": str(1 << 128)}, {"amount": "9" * 400}, {"amount": ""}, {"to": "ab"}, {"to": "AB" * 20},
        {"to": None}, {"nonce": -1}, {"nonce": True}, {"nonce": "1"}, {"nonce": 1 << 53},
        {"operation": "steal"}, {"operation": ["mint"]}, {"operation": "mint", "extra": 1}, {"actor": 5},
        {"signature": "00"},
    ],
)  # fmt: skip
def test_malformed_operations_are_refused(change: dict[str, Json]) -> None:
    with pytest.raises(ValidationFailed):
        operation_from_json({**TRANSFER, **change})


@pytest.mark.parametrize("value", [None, [], "mint", 1, {}])
def test_what_is_no_operation_is_refused(value: Json) -> None:
    with pytest.raises(ValidationFailed):
        operation_from_json(value)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{", b"{}", b"\xff", b"{" + b" " * (1 << 17), b"[" * 60_000]
)
def test_what_is_no_entry_or_genesis_is_refused(payload: bytes) -> None:
    with pytest.raises(ValidationFailed):
        read_entry(payload, bytes(65))
    with pytest.raises(ValidationFailed):
        read_genesis(payload, bytes(65))


def test_claims_are_bounded() -> None:
    claim = operation_to_json(lived().log[5].entry.operation)
    items = claim["items"]
    assert isinstance(items, list)
    with pytest.raises(ValidationFailed):
        operation_from_json({**claim, "items": items * 51})
    with pytest.raises(ValidationFailed):
        operation_from_json({**claim, "items": [""]})


def test_every_flipped_byte_of_a_genesis_is_found() -> None:
    assert read_genesis(GENESIS.payload, GENESIS.signature) == GENESIS
    whole = GENESIS.payload + GENESIS.signature
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 + position % 255
        with pytest.raises(ValidationFailed):
            read_genesis(bytes(changed[:-65]), bytes(changed[-65:]))


def test_a_genesis_gives_a_chain_that_no_evm_chain_has() -> None:
    assert 1 << 40 <= CHAIN.id < 1 << 49
    assert CHAIN.contract == ISSUER
    other = sign_genesis(Genesis(ISSUER, (), Amount(1), 0, 0), SIGN[ISSUER])
    assert other.chain != CHAIN


def test_an_operations_digest_is_eip_712s() -> None:
    types = "address actor,uint64 nonce,address to,uint128 amount"
    values = ["0x" + ALICE.hex(), 3, "0x" + BOB.hex(), 77]
    digest = eip712_digest("LLMESH Ledger", CHAIN, "Transfer", types, values)
    signed = ops.sign_operation(ALICE, 3, ops.Transfer(BOB, Amount(77)), CHAIN, SIGN[ALICE])
    assert signed.signature == SIGN[ALICE](digest)


def test_the_log_stays_what_it_is() -> None:
    """One byte of a format changed by accident, and no log of an earlier version would be read."""
    assert GENESIS.hash.hex() == "f627d77fd0b2a9caa0864e4a778b14dea5f156e92e51ba405a9f63218a9780f3"
    assert lived().head.hash.hex() == "03d165f42c52e6907fd7d906ad0c83f73cd48275de21f09c7f7bc81f6dee1bdd"
