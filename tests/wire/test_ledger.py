"""The codec of the ledger's protocol: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.binding import BINDING_BYTES, read_binding
from llmesh.core.swarm import Answer, AskGenesis, Entered, Follow, Introduction, Question, Submit
from llmesh.errors import ValidationFailed
from llmesh.wire.ledger import MAX_MESSAGE, decode_answer, decode_question, encode_answer, encode_question
from tests.core.banking import ALICE, GENESIS, Bank

BANK = Bank()
OPERATION = BANK.signed(ALICE, ops.Bond(Amount(7)))
BANK.enter(OPERATION)
SWARM = GENESIS.hash
QUESTIONS: list[Question] = [
    AskGenesis(SWARM), Submit(SWARM, OPERATION), Follow(SWARM, 0), Follow(SWARM, (1 << 64) - 1),
]  # fmt: skip
ANSWERS: list[Answer] = [
    Introduction(GENESIS),
    Introduction(GENESIS, 7, read_binding(bytes(59) + b"\x01" + bytes(BINDING_BYTES - 60))),
    Entered(0),
    Entered((1 << 64) - 1),
    BANK.log[0],
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_survive(question: Question) -> None:
    assert decode_question(encode_question(question)) == question


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_survive(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff", encode_question(AskGenesis(b"short")), bytes(MAX_MESSAGE + 1)]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    for decode in (decode_question, decode_answer):
        with pytest.raises(ValidationFailed):
            decode(data)


@given(st.sampled_from(QUESTIONS), st.data())
def test_damaged_questions_are_refused_or_mean_something(question: Question, data: st.DataObject) -> None:
    _survives(encode_question(question), data, lambda raw: encode_question(decode_question(raw)))


@given(st.sampled_from(ANSWERS), st.data())
def test_damaged_answers_are_refused_or_mean_something(answer: Answer, data: st.DataObject) -> None:
    _survives(encode_answer(answer), data, lambda raw: encode_answer(decode_answer(raw)))


def _survives(whole: bytes, data: st.DataObject, again: object) -> None:
    raw = bytearray(whole)
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert callable(again)
    try:
        again(cut)
    except ValidationFailed:
        return
