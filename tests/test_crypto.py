"""Signatures and peer ids agree with libp2p's own."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from llmesh import crypto
from llmesh.core.ids import peer_id

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRET, DIGEST = bytes(31) + b"\x07", b"d" * 32

seeds = st.binary(min_size=32, max_size=32)


@given(seeds)
def test_a_peer_id_is_libp2ps(seed: bytes) -> None:
    pair = create_new_key_pair(seed)
    public = pair.public_key.to_bytes()
    text = str(ID.from_pubkey(pair.public_key))
    assert crypto.peer_id_of(public) == peer_id(text)
    assert crypto.public_key_of(text) == public


@given(seeds, st.binary(max_size=64))
def test_a_signature_holds_for_its_domain_and_message_only(seed: bytes, message: bytes) -> None:
    public = create_new_key_pair(seed).public_key.to_bytes()
    signature = crypto.sign(seed, b"one", message)
    assert crypto.verify(public, b"one", message, signature)
    assert not crypto.verify(public, b"two", message, signature)
    assert not crypto.verify(public, b"one", message + b"x", signature)
    assert not crypto.verify(public, b"one", message, signature[:-1])
    assert not crypto.verify(bytes(32), b"one", message, signature)


@pytest.mark.parametrize(
    "text", ["", "1", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "z" * 999]
)
def test_other_peer_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Ed25519"):
        crypto.public_key_of(text)


def test_sha256() -> None:
    assert crypto.sha256_hex(b"abc").startswith("ba7816bf")


def test_keccak_is_ethereums() -> None:
    assert crypto.keccak256(b"").hex().startswith("c5d2460186f7233c927e7db2dcc703c0")


def test_blake3_is_over_the_parts_together() -> None:
    assert crypto.blake3_of([b"a", b"bc"]) == crypto.blake3_of([b"abc"])
    assert crypto.blake3_of([]).hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")


@given(st.integers(1, 1 << 200), st.binary(min_size=32, max_size=32))
def test_a_signature_names_its_key(number: int, digest: bytes) -> None:
    secret = number.to_bytes(32, "big")
    signature = crypto.signer(secret)(digest)
    assert crypto.recover(digest, signature) == crypto.address_of(secret)
    assert signature == crypto.signer(secret)(digest)
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2


@given(st.integers(0, 64), st.integers(1, 255))
def test_a_changed_signature_names_another_key_or_none(position: int, change: int) -> None:
    changed = bytearray(crypto.signer(SECRET)(DIGEST))
    changed[position] ^= change
    with contextlib.suppress(ValueError):
        assert crypto.recover(DIGEST, bytes(changed)) != crypto.address_of(SECRET)


def test_a_high_s_is_refused() -> None:
    signature = crypto.signer(SECRET)(DIGEST)
    s = ORDER - int.from_bytes(signature[32:64], "big")
    mirrored = signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))
    with pytest.raises(ValueError, match="low"):
        crypto.recover(DIGEST, mirrored)


@pytest.mark.parametrize("secret", [b"", bytes(32), bytes(31), b"\xff" * 32, bytes(31) + b"\x01\x02"])
def test_what_is_no_secp256k1_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the library's own words)
        crypto.signer(secret)
    with pytest.raises(ValueError):  # noqa: PT011
        crypto.address_of(secret)
