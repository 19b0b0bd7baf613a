"""Receipts and terms: checked offline, byte by byte; and what two of them prove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.evidence import Equivocation, Evidence, Overcharge, case_of, convict, read_evidence
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.receipt import (
    NO_CHARGE,
    NO_OFFER,
    RECEIPT_BYTES,
    Charge,
    Receipt,
    SignedReceipt,
    Work,
    check_answer,
    check_receipt,
    read_receipt,
    receipt_digest,
    sign_receipt,
)
from llmesh.core.terms import (
    TERMS_BYTES,
    SignedTerms,
    Terms,
    check_terms,
    read_terms,
    sign_terms,
    terms_digest,
)
from llmesh.core.voucher import ChannelId
from llmesh.errors import ValidationFailed

from .oracle import eip712_digest
from .paying import (
    CHAIN,
    OTHER_CHAIN,
    PROVIDER,
    SIGN_AS_PROVIDER,
    SIGN_AS_STRANGER,
    STRANGER,
    WORK,
    attempt,
    micro,
    receipt_for,
)

CHANNEL = ChannelId(b"c" * 32)
TERMS = Terms(PROVIDER, WORK.model, WORK.execution_class, micro(100), 7, 1_900_000_000)
SIGNED_TERMS = sign_terms(TERMS, CHAIN, SIGN_AS_PROVIDER)
OFFER = terms_digest(TERMS, CHAIN)
RECEIPT = receipt_for(attempt(1), Charge(CHANNEL, 3, micro(100), micro(300)), offer=OFFER)

bytes32 = st.binary(min_size=32, max_size=32)
amounts = st.integers(0, (1 << 128) - 1)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    price = draw(amounts)
    charge = Charge(ChannelId(draw(bytes32)), draw(st.integers(0, (1 << 64) - 1)), Amount(price),
                    Amount(draw(st.integers(price, (1 << 128) - 1))))  # fmt: skip
    name = draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True))
    work = Work(ModelId(draw(bytes32).hex()), name, draw(bytes32), draw(bytes32))
    request = RequestId(draw(st.binary(min_size=16, max_size=16)).hex())
    of = AttemptId(request, draw(st.integers(1, (1 << 32) - 1)))
    return Receipt(Address(draw(st.binary(min_size=20, max_size=20))), of, draw(bytes32), work, charge,
                   draw(st.integers(0, (1 << 64) - 1)))  # fmt: skip


@given(receipts())
def test_a_receipts_digest_is_eip_712s(receipt: Receipt) -> None:
    work, charge = receipt.work, receipt.charge
    values = [
        "0x" + receipt.provider.hex(), bytes.fromhex(receipt.attempt.request), receipt.attempt.number,
        receipt.offer, bytes.fromhex(work.model), work.execution_class.encode().ljust(32, b"\0"),
        work.input_digest, work.output_digest, bytes(charge.channel), charge.sequence, charge.price.micro,
        charge.cumulative.micro, receipt.issued_at,
    ]  # fmt: skip
    types = (
        "address provider,bytes16 requestId,uint32 attempt,bytes32 offer,bytes32 model,"
        "bytes32 executionClass,bytes32 inputDigest,bytes32 outputDigest,bytes32 channelId,"
        "uint64 sequence,uint128 price,uint128 cumulative,uint64 issuedAt"
    )
    assert receipt_digest(receipt, CHAIN) == eip712_digest("LLMESH Receipts", CHAIN, "Receipt", types, values)


@given(receipts())
def test_a_receipt_survives_the_wire(receipt: Receipt) -> None:
    signed = sign_receipt(receipt, CHAIN, SIGN_AS_PROVIDER)
    assert len(signed.packed) == RECEIPT_BYTES
    assert read_receipt(signed.packed) == signed


def test_terms_are_eip_712s_and_survive_the_wire() -> None:
    values = [
        "0x" + PROVIDER.hex(),
        bytes.fromhex(TERMS.model),
        b"fp32-strict".ljust(32, b"\0"),
        100,
        7,
        TERMS.not_after,
    ]
    types = (
        "address provider,bytes32 model,bytes32 executionClass,uint128 maxPrice,uint64 sequence,"
        "uint64 notAfter"
    )
    assert eip712_digest("LLMESH Terms", CHAIN, "Terms", types, values) == OFFER
    assert read_terms(SIGNED_TERMS.packed) == SIGNED_TERMS
    check_terms(SIGNED_TERMS, CHAIN)


@pytest.mark.parametrize("size", [0, 1, RECEIPT_BYTES - 1, RECEIPT_BYTES + 1, TERMS_BYTES - 1])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValidationFailed):
        read_receipt(bytes(size))
    with pytest.raises(ValidationFailed):
        read_terms(bytes(size))
    with pytest.raises(ValidationFailed):
        read_evidence(bytes(size))


def test_every_flipped_byte_of_a_receipt_is_found() -> None:
    check_receipt(RECEIPT, CHAIN)
    for position in range(RECEIPT_BYTES):
        packed = bytearray(RECEIPT.packed)
        packed[position] ^= 1 + position % 255
        with pytest.raises(ValidationFailed):
            check_receipt(read_receipt(bytes(packed)), CHAIN)


def test_every_flipped_byte_of_terms_is_found() -> None:
    for position in range(TERMS_BYTES):
        packed = bytearray(SIGNED_TERMS.packed)
        packed[position] ^= 1 + position
        with pytest.raises(ValidationFailed):
            check_terms(read_terms(bytes(packed)), CHAIN)


def test_a_receipt_counts_on_its_own_chain_only() -> None:
    with pytest.raises(ValidationFailed):
        check_receipt(RECEIPT, OTHER_CHAIN)


def test_free_work_has_a_receipt_too() -> None:
    free = receipt_for(attempt(1), NO_CHARGE)
    check_receipt(free, CHAIN)
    check_answer(free.receipt, PROVIDER, attempt(1), WORK, micro(0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"provider": STRANGER}, "provider"),
        ({"attempt": attempt(1, 2)}, "attempt"),
        ({"attempt": attempt(2)}, "attempt"),
        ({"work": replace(WORK, model=ModelId("cd" * 32))}, "model"),
        ({"work": replace(WORK, execution_class="bf16")}, "execution class"),
        ({"work": replace(WORK, input_digest=bytes(32))}, "input"),
        ({"work": replace(WORK, output_digest=bytes(32))}, "output"),
        ({"quote": micro(99)}, "quote"),
    ],
)
def test_a_receipt_for_something_else_names_the_field(change: dict[str, Any], named: str) -> None:
    expected = {"provider": PROVIDER, "attempt": attempt(1), "work": WORK, "quote": micro(100)}
    check_answer(RECEIPT.receipt, **expected)
    with pytest.raises(ValidationFailed, match=named):
        check_answer(RECEIPT.receipt, **{**expected, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": attempt(1, 0)},
        {"attempt": attempt(1, 1 << 32)},
        {"attempt": AttemptId(RequestId("zz"), 1)},
        {"offer": b"short"},
        {"issued_at": -1},
        {"issued_at": 1 << 64},
        {"provider": Address(b"")},
    ],
)
def test_malformed_receipts_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed):
        replace(RECEIPT.receipt, **change)


def test_malformed_parts_cannot_be_made() -> None:
    for make in (
        lambda: Charge(ChannelId(b""), 1, micro(1), micro(1)),
        lambda: Charge(CHANNEL, -1, micro(1), micro(1)),
        lambda: Charge(CHANNEL, 1, micro(2), micro(1)),
        lambda: replace(WORK, execution_class="FP32"),
        lambda: replace(WORK, execution_class="x" * 33),
        lambda: replace(WORK, input_digest=b""),
        lambda: replace(TERMS, sequence=1 << 64),
    ):
        with pytest.raises(ValidationFailed):
            make()


# --- evidence -------------------------------------------------------------------------------------


def signed(receipt: Receipt) -> SignedReceipt:
    return sign_receipt(receipt, CHAIN, SIGN_AS_PROVIDER)


FREE = receipt_for(attempt(1), NO_CHARGE, offer=NO_OFFER)
OTHER_OUTPUT = signed(replace(RECEIPT.receipt, work=replace(WORK, output_digest=bytes(32))))
ELSEWHERE = receipt_for(attempt(1), replace(RECEIPT.charge, channel=ChannelId(b"d" * 32)), offer=OFFER)
TOO_DEAR = receipt_for(attempt(2), Charge(CHANNEL, 4, micro(101), micro(401)), offer=OFFER)
OTHER_MODEL = receipt_for(
    attempt(2), Charge(CHANNEL, 4, micro(1), micro(401)), replace(WORK, model=ModelId("cd" * 32)), OFFER
)


@pytest.mark.parametrize(
    "evidence",
    [
        Equivocation(RECEIPT, OTHER_OUTPUT),
        Equivocation(RECEIPT, signed(replace(RECEIPT.receipt, issued_at=1))),
        Overcharge(TOO_DEAR, SIGNED_TERMS),
        Overcharge(OTHER_MODEL, SIGNED_TERMS),
    ],
)
def test_a_cheat_is_convicted(evidence: Evidence) -> None:
    assert read_evidence(evidence.packed) == evidence
    assert convict(evidence, CHAIN) == PROVIDER
    with pytest.raises(ValidationFailed):
        convict(evidence, OTHER_CHAIN)


@pytest.mark.parametrize(
    "evidence",
    [
        Equivocation(RECEIPT, RECEIPT),
        Equivocation(FREE, signed(replace(FREE.receipt, issued_at=1))),
        Equivocation(RECEIPT, signed(replace(RECEIPT.receipt, attempt=attempt(1, 2)))),
        Equivocation(RECEIPT, ELSEWHERE),
        Equivocation(RECEIPT, sign_receipt(OTHER_OUTPUT.receipt, CHAIN, SIGN_AS_STRANGER)),
        Equivocation(RECEIPT, SignedReceipt(OTHER_OUTPUT.receipt, RECEIPT.signature)),
        Overcharge(RECEIPT, SIGNED_TERMS),
        Overcharge(receipt_for(attempt(2), TOO_DEAR.charge, offer=NO_OFFER), SIGNED_TERMS),
        Overcharge(TOO_DEAR, SignedTerms(replace(TERMS, price=micro(1)), SIGNED_TERMS.signature)),
        Overcharge(TOO_DEAR, sign_terms(replace(TERMS, provider=STRANGER), CHAIN, SIGN_AS_STRANGER)),
    ],
)  # fmt: skip
def test_the_honest_are_not_convicted(evidence: Evidence) -> None:
    with pytest.raises(ValidationFailed):
        convict(evidence, CHAIN)


def test_one_offence_is_one_case() -> None:
    dearer = signed(replace(TOO_DEAR.receipt, attempt=attempt(1)))
    cases = {
        case_of(Equivocation(RECEIPT, OTHER_OUTPUT)),
        case_of(Equivocation(OTHER_OUTPUT, RECEIPT)),
        case_of(Overcharge(dearer, SIGNED_TERMS)),
    }
    assert len(cases) == 1
    assert case_of(Overcharge(TOO_DEAR, SIGNED_TERMS)) not in cases
