"""Signatures and peer ids agree with libp2p's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from llmesh import crypto
from llmesh.core.ids import peer_id

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
