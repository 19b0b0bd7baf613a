"""Frames to bytes and back, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.frames import (
    MAX_PAYLOAD,
    Cancel,
    Credit,
    End,
    Failed,
    Frame,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
)
from llmesh.core.framing import HEADER, with_length
from llmesh.core.outbox import BATCH
from llmesh.errors import ValidationFailed
from llmesh.wire import session_pb2 as pb
from llmesh.wire.session import decode, encode

U32 = st.integers(0, (1 << 32) - 1)
CALLS = st.integers(1, (1 << 32) - 1)
SHORT = st.text(st.characters(codec="utf-8"), max_size=60)
FRAMES = st.one_of(
    st.builds(Hello, SHORT, SHORT, st.lists(SHORT, max_size=32).map(tuple)),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(Open, CALLS, SHORT, U32, st.binary(max_size=200), st.booleans()),
    st.builds(Message, CALLS, st.binary(max_size=200), st.booleans()),
    st.builds(End, CALLS),
    st.builds(Failed, CALLS, U32, SHORT, st.none() | st.sampled_from([0.001, 1.5, 4_000_000.0])),
    st.builds(Cancel, CALLS),
    st.builds(Credit, U32, U32),
)


@given(FRAMES)
def test_a_frame_survives_the_journey(frame: Frame) -> None:
    data = encode(frame)
    assert int.from_bytes(data[:HEADER], "big") == len(data) - HEADER
    assert decode(data[HEADER:]) == frame


@given(CALLS, st.binary(max_size=300), st.booleans())
def test_a_message_is_written_as_protobuf_writes_it(call: int, payload: bytes, more: bool) -> None:
    body = pb.Frame(kind="MESSAGE", call=call, payload=payload, more=more).SerializeToString()
    assert encode(Message(call, payload, more)) == with_length(body)
    assert encode(Message(call, memoryview(payload), more)) == with_length(body)


def test_the_longest_frame_of_a_message_is_one_write() -> None:
    assert len(encode(Message((1 << 32) - 1, bytes(MAX_PAYLOAD), True))) <= BATCH


@given(st.binary(max_size=200))
def test_noise_is_a_frame_or_refused(noise: bytes) -> None:
    with suppress(ValidationFailed):
        decode(noise)  # any other exception fails the test


@pytest.mark.parametrize(
    "wire",
    [
        pb.Frame(kind="MESSAGE", payload=b"x"),
        pb.Frame(kind="OPEN", protocol="/x"),
        pb.Frame(kind="END"),
        pb.Frame(kind="FAILED"),
        pb.Frame(kind="CANCEL"),
        pb.Frame(kind="HELLO", call=1),
        pb.Frame(kind="PING", call=1),
        pb.Frame(kind="PONG", call=1),
        pb.Frame(kind="MESSAGE", call=1, payload=b"x" * (MAX_PAYLOAD + 1)),
        pb.Frame(kind="OPEN", call=1, protocol="/" + "x" * 128),
    ],
)
def test_what_the_protocol_forbids_is_refused(wire: pb.Frame) -> None:
    with pytest.raises(ValidationFailed):
        decode(wire.SerializeToString())


def test_what_a_newer_version_adds_is_carried() -> None:
    assert decode(b"\x08\x63\x10\x01") is None  # kind 99
    assert decode(b"") is None
    unknown_field = b"\x9a\x06\x03new"  # field 99, text
    assert decode(encode(End(7))[HEADER:] + unknown_field) == End(7)
    assert decode(encode(Failed(7, 9999, "new", None))[HEADER:]) == Failed(7, 9999, "new", None)


def test_texts_are_cut_to_size_at_whole_characters() -> None:
    failed = decode(encode(Failed(1, 1004, "好" * 2000, None))[HEADER:])
    assert isinstance(failed, Failed)
    assert failed.message == "好" * 682
    assert decode(encode(Failed(1, 1004, "\udc80!", None))[HEADER:]) == Failed(1, 1004, "?!", None)
    long = Hello("a" * 300, "", ("/short", "/" + "x" * 300, *["/x"] * 40))
    hello = decode(encode(long)[HEADER:])
    assert isinstance(hello, Hello)
    assert len(hello.agent) == 256
    assert hello.addresses == ("/short", *["/x"] * 30)
