from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.channel import Sync, SyncRequest
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.model import Card
from llmesh.core.payment import Answer, Confirm, Confirmed, Question, Reconcile
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, Voucher
from llmesh.errors import ValidationFailed
from llmesh.wire import payment_pb2 as pb
from llmesh.wire.payment import decode_answer, decode_question, encode_answer, encode_question
from tests.core.receipts import costing
from tests.mesh.people import START, credentials

CARD = Card("senti")
CREDENTIALS = credentials("ann")
BINDING = CREDENTIALS.binding(START)
TERMS = CREDENTIALS.terms(Offer(ModelId("a" * 64), CARD, "echo", Amount(7)), START)

hashes = st.binary(min_size=32, max_size=32)
models = hashes.map(lambda b: ModelId(b.hex()))
addresses = st.binary(min_size=20, max_size=20).map(Address)
amounts = st.integers(0, (1 << 128) - 1).map(Amount)
attempts = st.builds(
    AttemptId,
    st.binary(min_size=16, max_size=16).map(lambda b: RequestId(b.hex())),
    st.integers(1, (1 << 32) - 1),
)
receipts = st.integers(0, (1 << 128) - 1).map(costing)
vouchers = st.builds(
    SignedVoucher,
    st.builds(Voucher, hashes.map(ChannelId), amounts),
    st.binary(min_size=65, max_size=65),
)
configs = st.builds(
    ChannelConfig,
    addresses,
    addresses,
    addresses,
    addresses,
    addresses,
    st.integers(0, (1 << 40) - 1),
    hashes,
)
lost = st.lists(attempts, max_size=64).map(tuple)
requests = st.builds(SyncRequest, st.none() | vouchers, st.none() | receipts, lost)
questions = st.builds(Confirm, models, hashes, amounts) | st.builds(
    Reconcile, configs, st.just(BINDING), requests, amounts
)
answers = hashes.map(lambda salt: Confirmed(BINDING, TERMS, salt)) | st.builds(
    Sync,
    st.none() | vouchers,
    st.none() | receipts,
    st.lists(receipts, max_size=3).map(tuple),
    st.lists(st.tuples(attempts, amounts), max_size=64).map(tuple),
)


@given(questions)
def test_questions_come_back_as_they_left(question: Question) -> None:
    assert decode_question(encode_question(question)) == question


@given(answers)
def test_answers_come_back_as_they_left(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@given(
    st.binary(max_size=80)
    | questions.map(encode_question).flatmap(lambda b: st.integers(0, len(b)).map(lambda end: b[:end]))
    | answers.map(encode_answer).flatmap(lambda b: st.integers(0, len(b)).map(lambda end: b[:end]))
)
def test_any_bytes_are_a_message_or_one_clear_error(data: bytes) -> None:
    for decode in (decode_question, decode_answer):
        with suppress(ValidationFailed):
            decode(data)


ATTEMPTS = [pb.PaidAttempt(request_id=bytes(16), attempt=1)] * 65
GOOD = Reconcile(
    ChannelConfig(*[Address(bytes(20))] * 5, 0, bytes(32)), BINDING, SyncRequest(None, None), Amount(0)
)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.lost.extend(ATTEMPTS),
        lambda told: told.lost.append(pb.PaidAttempt(request_id=bytes(15), attempt=1)),
        lambda told: told.lost.append(pb.PaidAttempt(request_id=bytes(16))),
        lambda told: setattr(told, "config", bytes(139)),
        lambda told: setattr(told, "best", bytes(112)),
        lambda told: setattr(told, "last", bytes(1)),
        lambda told: setattr(told, "binding", b""),
    ],
    ids=range(7),
)
def test_fields_of_wrong_size_are_refused(change: Callable[[pb.Reconcile], None]) -> None:
    question = pb.PaymentQuestion.FromString(encode_question(GOOD))
    change(question.reconcile)
    with pytest.raises(ValidationFailed):
        decode_question(question.SerializeToString())


def test_what_is_too_long_is_not_even_read() -> None:
    for decode in (decode_question, decode_answer):
        with pytest.raises(ValidationFailed, match="is over"):
            decode(bytes((64 << 10) + 1))
