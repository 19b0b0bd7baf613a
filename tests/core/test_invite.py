"""An invite is one line; damaged, late or forged ones are told apart from good ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.address import Address
from llmesh.core.invite import (
    CREDIT_BYTES,
    PREFIX,
    Credit,
    Invite,
    SignedCredit,
    check_credit,
    invite_from_text,
    invite_text,
    read_credit,
    sign_credit,
)
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed

from .banking import ALICE, CHAIN, GENESIS, ISSUER, SIGN, START
from .paying import micro

EXPIRY = START + 86_400
CREDIT = sign_credit(Credit(b"c" * 16, micro(5_000_000_000), EXPIRY), CHAIN, SIGN[ISSUER])
ADDRESSES = ("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW" + "z" * 44, "/dns/例子.test/tcp/4001")
INVITE = Invite(ADDRESSES, GENESIS.hash, ISSUER, EXPIRY, CREDIT)
LINE = invite_text(INVITE)


def test_it_is_one_short_line_that_survives_pasting() -> None:
    assert LINE.startswith(PREFIX)
    assert LINE.isprintable()
    assert " " not in LINE
    assert len(LINE) < 500
    assert invite_from_text(LINE, now=START) == INVITE
    assert invite_from_text(f"  {LINE[:70]}\n {LINE[70:]}\r\n", now=START) == INVITE
    assert INVITE.chain == CHAIN


addresses = st.lists(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60), min_size=1, max_size=16
)


@given(addresses, st.binary(min_size=32, max_size=32), st.integers(START + 1, (1 << 64) - 1), st.booleans())
def test_any_invite_survives(places: list[str], genesis: bytes, expires_at: int, gift: bool) -> None:
    invite = Invite(tuple(places), genesis, ISSUER, expires_at)
    if gift:
        credit = Credit(b"c" * 16, micro(1), expires_at)
        invite = replace(invite, credit=sign_credit(credit, invite.chain, SIGN[ISSUER]))
    assert invite_from_text(invite_text(invite), now=START) == invite


def test_every_mistyped_letter_is_found() -> None:
    for position, letter in enumerate(LINE):
        other = "A" if letter != "A" else "B"
        with pytest.raises(ValidationFailed):
            invite_from_text(LINE[:position] + other + LINE[position + 1 :], now=START)


@pytest.mark.parametrize(
    "line", ["", PREFIX, "hello", LINE[:-1], LINE[:100], LINE + "A", LINE * 40, "x" * 10**6, PREFIX + "é"]
)
def test_what_is_no_invite_is_refused(line: str) -> None:
    with pytest.raises(ValidationFailed):
        invite_from_text(line, now=START)


def test_it_expires_whatever_the_clock_did_before() -> None:
    assert invite_from_text(LINE, now=0) == INVITE
    for late in (EXPIRY, EXPIRY + 1e9):
        with pytest.raises(ValidationFailed, match="expired"):
            invite_from_text(LINE, now=late)


@pytest.mark.parametrize(
    "credit",
    [
        sign_credit(CREDIT.credit, CHAIN, SIGN[ALICE]),
        sign_credit(CREDIT.credit, Chain(CHAIN.id + 1, ISSUER), SIGN[ISSUER]),
        SignedCredit(replace(CREDIT.credit, amount=micro(1)), CREDIT.signature),
    ],
)
def test_a_credit_that_is_not_the_issuers_is_refused(credit: SignedCredit) -> None:
    with pytest.raises(ValidationFailed):
        invite_from_text(invite_text(replace(INVITE, credit=credit)), now=START)


def test_every_flipped_byte_of_a_credit_is_found() -> None:
    assert read_credit(CREDIT.packed) == CREDIT
    for position in range(CREDIT_BYTES):
        packed = bytearray(CREDIT.packed)
        packed[position] ^= 1 + position
        with pytest.raises(ValidationFailed):
            check_credit(read_credit(bytes(packed)), CHAIN)


def test_malformed_invites_cannot_be_made() -> None:
    for make in (
        lambda: replace(INVITE, addresses=()),
        lambda: replace(INVITE, addresses=ADDRESSES * 9),
        lambda: replace(INVITE, addresses=("a" * 256,)),
        lambda: replace(INVITE, addresses=("a\x1b[2J",)),
        lambda: replace(INVITE, genesis=b""),
        lambda: replace(INVITE, issuer=Address(b"")),
        lambda: replace(INVITE, expires_at=-1),
        lambda: Credit(b"", micro(1), 1),
        lambda: Credit(bytes(16), micro(1), 1 << 64),
        lambda: read_credit(bytes(CREDIT_BYTES - 1)),
    ):
        with pytest.raises(ValidationFailed):
            make()
