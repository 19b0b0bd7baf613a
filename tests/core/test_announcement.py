"""A record is believed only if its peer signed exactly this, and it is well formed and in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh import crypto
from llmesh.core.amount import Amount
from llmesh.core.announcement import (
    DOMAIN,
    MAX_LIFETIME,
    MAX_PAYLOAD,
    Announcement,
    Offer,
    SignedAnnouncement,
    author_of,
    read_announcement,
    read_packed,
    sign_announcement,
)
from llmesh.core.encoding import Json, canonical_json
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import Card
from llmesh.errors import ValidationFailed
from tests.mesh.people import credentials, peer, seed

NOW = 1_700_000_000
SEED, OTHER_SEED = b"1" * 32, b"2" * 32


def peer_of(seed: bytes) -> PeerId:
    return PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed).verify_key)))


def sign(payload: bytes) -> bytes:
    return crypto.sign(SEED, DOMAIN, payload)


OFFER = Offer(
    ModelId("ab" * 32), Card("情感/senti", "2", "说明", "MIT"), "text-classification", Amount(100_000)
)
GOOD = Announcement(
    peer_id=peer_of(SEED),
    sequence=7,
    addresses=("/ip4/192.0.2.7/tcp/4001", "/quic-of-tomorrow/x"),
    offers=(OFFER,),
    stake=Amount.parse(1000),
    issued_at=NOW,
    expires_at=NOW + 1800,
)
SIGNED = sign_announcement(GOOD, sign, now=NOW)


def resigned(**fields: Json) -> tuple[bytes, bytes]:
    """The good record with some fields replaced, properly signed."""
    payload = canonical_json({**json.loads(SIGNED.payload), **fields})
    return payload, sign(payload)


def with_offer(**fields: Json) -> tuple[bytes, bytes]:
    return resigned(offers=[{**json.loads(SIGNED.payload)["offers"][0], **fields}])


def test_what_is_signed_reads_back_both_ways() -> None:
    assert SIGNED.announcement == GOOD
    assert read_announcement(SIGNED.payload, SIGNED.signature, now=NOW) == SIGNED
    assert read_packed(SIGNED.packed, now=NOW) == SIGNED
    assert author_of(SIGNED.payload) == (GOOD.peer_id, 7)


def test_amounts_travel_as_whole_micro_mesh_in_texts() -> None:
    fields = json.loads(SIGNED.payload)
    assert fields["stake"] == "1000000000"
    assert fields["offers"][0]["fee"] == "100000"


def test_unknown_fields_are_carried() -> None:
    payload, signature = resigned(hardware={"gpu": 1})
    record = read_announcement(payload, signature, now=NOW)
    assert record.announcement == GOOD
    assert record.payload == payload


@given(st.integers(0, len(SIGNED.packed) - 1), st.integers(1, 255))
def test_no_byte_can_change(place: int, flip: int) -> None:
    packed = bytearray(SIGNED.packed)
    packed[place] ^= flip
    with pytest.raises(ValidationFailed):
        read_packed(bytes(packed), now=NOW)


def test_another_key_cannot_sign_for_a_peer() -> None:
    with pytest.raises(ValidationFailed, match="was not signed by it"):
        read_announcement(SIGNED.payload, crypto.sign(OTHER_SEED, DOMAIN, SIGNED.payload), now=NOW)


def test_a_signature_of_another_kind_of_record_does_not_pass() -> None:
    with pytest.raises(ValidationFailed, match="was not signed by it"):
        read_announcement(SIGNED.payload, crypto.sign(SEED, b"llmesh-receipt", SIGNED.payload), now=NOW)


def test_another_peers_name_under_a_genuine_signature_is_refused() -> None:
    payload, signature = resigned(peer_id=peer_of(OTHER_SEED))
    with pytest.raises(ValidationFailed, match="was not signed by it"):
        read_announcement(payload, signature, now=NOW)


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(json.loads(SIGNED.payload)).encode(),
        SIGNED.payload + b" ",
        SIGNED.payload.replace(b"{", b'{"addresses":[],', 1),
    ],
    ids=["spaces", "trailing", "twice"],
)
def test_other_spellings_are_refused_though_signed(payload: bytes) -> None:
    with pytest.raises(ValidationFailed, match="canonical"):
        read_announcement(payload, sign(payload), now=NOW)


def test_size_is_checked_before_anything_is_read() -> None:
    with pytest.raises(ValidationFailed, match=str(MAX_PAYLOAD)):
        read_announcement(b"[" * (MAX_PAYLOAD + 1), b"", now=NOW)
    with pytest.raises(ValidationFailed, match=str(MAX_PAYLOAD)):
        author_of(b"[" * (MAX_PAYLOAD + 1))


@pytest.mark.parametrize(
    ("now", "reason"), [(GOOD.expires_at, "expired"), (NOW - 301, "future"), (NOW + 10 * 1800, "expired")]
)
def test_a_record_out_of_its_time_is_refused(now: float, reason: str) -> None:
    with pytest.raises(ValidationFailed, match=reason):
        read_announcement(SIGNED.payload, SIGNED.signature, now=now)


@pytest.mark.parametrize("now", [NOW - 300, NOW, GOOD.expires_at - 1])
def test_clocks_may_differ_by_minutes(now: float) -> None:
    assert read_announcement(SIGNED.payload, SIGNED.signature, now=now) == SIGNED


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LIFETIME + 1])
def test_a_lifetime_is_bounded(lifetime: int) -> None:
    with pytest.raises(ValidationFailed, match="lives"):
        sign_announcement(replace(GOOD, expires_at=NOW + lifetime), sign, now=NOW - 10)


WRONG: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "no addresses": lambda: resigned(addresses=None),
    "address no multiaddr": lambda: resigned(addresses=["192.0.2.7:4001"]),
    "address with escape": lambda: resigned(addresses=["/ip4/\x1b[2J/tcp/1"]),
    "address a number": lambda: resigned(addresses=[1]),
    "address too long": lambda: resigned(addresses=["/dns4/" + "a" * 256]),
    "too many addresses": lambda: resigned(addresses=["/ip4/192.0.2.7/tcp/1"] * 17),
    "sequence zero": lambda: resigned(sequence=0),
    "sequence true": lambda: resigned(sequence=True),
    "sequence huge": lambda: resigned(sequence=1 << 63),
    "sequence text": lambda: resigned(sequence="7"),
    "stake a number": lambda: resigned(stake=1000),
    "stake negative": lambda: resigned(stake="-1"),
    "stake with zeros": lambda: resigned(stake="01"),
    "stake too large": lambda: resigned(stake=str(1 << 128)),
    "peer id wrong": lambda: resigned(peer_id="QmX"),
    "times missing": lambda: resigned(issued_at=None),
    "offers no list": lambda: resigned(offers={}),
    "offer no object": lambda: resigned(offers=["senti"]),
    "offer twice": lambda: resigned(offers=json.loads(SIGNED.payload)["offers"] * 2),
    "too many offers": lambda: resigned(offers=[1] * 65),
    "model id short": lambda: with_offer(model_id="ab"),
    "name empty": lambda: with_offer(name=""),
    "version with space": lambda: with_offer(version="1 0"),
    "task upper case": lambda: with_offer(task="Text"),
    "fee fractional": lambda: with_offer(fee="0.1"),
    "fee missing": lambda: with_offer(fee=None),
    "description too long": lambda: with_offer(description="x" * 513),
    "description with escape": lambda: with_offer(description="\x1b[2J"),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_refused_though_signed(make: Callable[[], tuple[bytes, bytes]]) -> None:
    payload, signature = make()
    with pytest.raises(ValidationFailed):
        read_announcement(payload, signature, now=NOW)


def test_what_others_would_refuse_is_not_signed() -> None:
    offers = tuple(replace(OFFER, card=Card(f"m{n}", description="x" * 500)) for n in range(40))
    with pytest.raises(ValidationFailed, match=str(MAX_PAYLOAD)):
        sign_announcement(replace(GOOD, offers=offers), sign, now=NOW)


@given(st.binary(max_size=300))
def test_garbage_is_refused(packed: bytes) -> None:
    with pytest.raises(ValidationFailed):
        read_packed(packed, now=NOW)


def test_a_signed_announcement_is_plain_data() -> None:
    assert SignedAnnouncement(SIGNED.payload, SIGNED.signature, GOOD) == SIGNED


def test_an_offer_names_its_variant_and_execution() -> None:
    offer = replace(OFFER, variant="onnx/model_q4.onnx", execution="int4")
    signed = sign_announcement(replace(GOOD, offers=(offer,)), sign, now=NOW)
    assert read_announcement(signed.payload, signed.signature, now=NOW).announcement.offers == (offer,)


def test_an_account_and_terms_read_back_and_are_of_the_author() -> None:
    ann = credentials("ann")
    offer = replace(OFFER, terms=ann.terms(OFFER, NOW))
    said = replace(GOOD, peer_id=peer("ann"), account=ann.binding(NOW), offers=(offer,))
    record = sign_announcement(said, lambda payload: crypto.sign(seed("ann"), DOMAIN, payload), now=NOW)
    read = read_packed(record.packed, now=NOW).announcement
    assert (read, read.offers[0].terms) == (said, offer.terms)
    with pytest.raises(ValidationFailed, match="account of another"):
        sign_announcement(replace(GOOD, account=ann.binding(NOW)), sign, now=NOW)


@pytest.mark.parametrize("account", ["", "ab", "zz" * 217, "00" * 217, 7])
def test_an_account_that_is_none_is_refused(account: Json) -> None:
    with pytest.raises(ValidationFailed):
        read_announcement(*resigned(account=account), now=NOW)


@pytest.mark.parametrize("terms", ["", "ab" * 185, 7])
def test_terms_that_are_none_are_refused(terms: Json) -> None:
    with pytest.raises(ValidationFailed):
        read_announcement(*with_offer(terms=terms), now=NOW)
