"""Queries and answers survive the wire; whatever is out of bounds is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.amount import Amount
from llmesh.core.announcement import MAX_PAYLOAD
from llmesh.core.directory import Cursor
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.query import Answer, Get, Hint, News, Parting, Query, Record, Search, Sync
from llmesh.errors import ValidationFailed
from llmesh.wire import directory_pb2 as pb
from llmesh.wire.directory import MAX_MESSAGE, decode_answer, decode_query, encode_answer, encode_query

PEER = PeerId("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")
u63 = st.integers(0, (1 << 63) - 1)
marks = st.lists(st.binary(min_size=8, max_size=8), max_size=5).map(tuple)
cursors = st.builds(Cursor, u63, u63)
records = st.lists(st.builds(Record, st.binary(max_size=50), st.binary(min_size=64, max_size=64)), max_size=3)
hints = st.lists(st.builds(Hint, st.just(PEER), u63), max_size=3).map(tuple)
searches = st.builds(
    Search,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.none() | st.binary(min_size=32, max_size=32).map(lambda b: ModelId(b.hex())),
    st.none() | st.integers(0, (1 << 128) - 1).map(Amount),
    st.integers(0, 1000),
)
queries: st.SearchStrategy[Query] = st.one_of(
    st.builds(Sync, st.none() | cursors, marks),
    searches,
    st.builds(Get, hints),
    st.builds(News, records.map(tuple), hints),
    st.just(Parting()),
)


@given(queries)
def test_queries_round_trip(query: Query) -> None:
    assert decode_query(encode_query(query)) == query


@given(st.builds(Answer, records.map(tuple), st.none() | cursors, marks))
def test_answers_round_trip(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_a_query_at_rest_is_small() -> None:
    assert len(encode_query(Sync(Cursor((1 << 63) - 1, 20_000)))) < 20
    assert len(encode_query(News(hints=(Hint(PEER, 1 << 40),)))) < 200


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_means_something(data: bytes) -> None:
    for decode in (decode_query, decode_answer):
        with suppress(ValidationFailed):
            decode(data)


def test_unknown_fields_are_carried_past() -> None:
    assert decode_query(encode_query(Parting()) + b"\xfa\x01\x03new") == Parting()


RECORD = pb.Record(payload=b"x" * (MAX_PAYLOAD + 1), signature=bytes(64))
SHORT = pb.Record(payload=b"x", signature=bytes(63))


@pytest.mark.parametrize(
    "message",
    [
        pb.Query(),
        pb.Query(sync=pb.Sync(known=b"1234567")),
        pb.Query(search=pb.Search(name="x" * 129)),
        pb.Query(search=pb.Search(max_fee=b"1" * 17)),
        pb.Query(search=pb.Search(model_id=b"1" * 31)),
        pb.Query(get=pb.Get(wanted=[pb.Hint(peer_id="QmX")])),
        pb.Query(get=pb.Get(wanted=[pb.Hint(peer_id=PEER)] * 65)),
        pb.Query(news=pb.News(records=[RECORD])),
        pb.Query(news=pb.News(records=[SHORT])),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(message: pb.Query) -> None:
    with pytest.raises(ValidationFailed):
        decode_query(message.SerializeToString())


def test_answers_are_bounded_too() -> None:
    for message in (pb.Answer(records=[RECORD]), pb.Answer(wanted=b"1")):
        with pytest.raises(ValidationFailed):
            decode_answer(message.SerializeToString())
    with pytest.raises(ValidationFailed, match=str(MAX_MESSAGE)):
        decode_answer(bytes(MAX_MESSAGE + 1))
