"""A node and an account vouch for each other, or nobody believes either."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import nacl.signing
import pytest

from llmesh import crypto
from llmesh.core.binding import BINDING_BYTES, DOMAIN, KeyBinding, bind, check_binding, read_binding
from llmesh.core.ids import PeerId
from llmesh.errors import ValidationFailed

from .paying import CHAIN, OTHER_CHAIN, PROVIDER, SIGN_AS_PROVIDER, SIGN_AS_STRANGER, STRANGER

SEED, OTHER_SEED = b"s" * 32, b"t" * 32
NODE, OTHER_NODE = (
    PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed).verify_key))) for seed in (SEED, OTHER_SEED)
)
BINDING = KeyBinding(NODE, PROVIDER, CHAIN, 2_000)
sign_as_node = partial(crypto.sign, SEED, DOMAIN)
SIGNED = bind(BINDING, sign_as_node, SIGN_AS_PROVIDER)


def test_it_holds_until_it_expires_and_survives_the_wire() -> None:
    assert len(SIGNED.packed) == BINDING_BYTES
    assert read_binding(SIGNED.packed) == SIGNED
    check_binding(SIGNED, now=1_999.9)
    for late in (2_000, 1e12):
        with pytest.raises(ValidationFailed, match="expired"):
            check_binding(SIGNED, now=late)


def test_a_clock_that_jumps_back_does_no_harm() -> None:
    check_binding(SIGNED, now=0)
    check_binding(SIGNED, now=-1e9)


def test_every_flipped_byte_is_found() -> None:
    for position in range(BINDING_BYTES):
        packed = bytearray(SIGNED.packed)
        packed[position] ^= 1 + position % 255
        with pytest.raises(ValidationFailed):
            check_binding(read_binding(bytes(packed)), now=1_000)


@pytest.mark.parametrize("size", [0, BINDING_BYTES - 1, BINDING_BYTES + 1])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValidationFailed):
        read_binding(bytes(size))


@pytest.mark.parametrize(
    "forged",
    [
        bind(replace(BINDING, node=OTHER_NODE), sign_as_node, SIGN_AS_PROVIDER),
        bind(BINDING, partial(crypto.sign, SEED, b"llmesh-announcement"), SIGN_AS_PROVIDER),
        bind(BINDING, sign_as_node, SIGN_AS_STRANGER),
        bind(replace(BINDING, account=STRANGER), sign_as_node, SIGN_AS_PROVIDER),
        replace(SIGNED, binding=replace(BINDING, chain=OTHER_CHAIN)),
        replace(SIGNED, binding=replace(BINDING, not_after=3_000)),
    ],
    ids=["other node", "other domain", "other account's key", "other account", "other chain", "prolonged"],
)
def test_a_forged_binding_is_refused(forged: object) -> None:
    with pytest.raises(ValidationFailed):
        check_binding(forged, now=1_000)  # type: ignore[arg-type]


def test_malformed_bindings_cannot_be_made() -> None:
    with pytest.raises(ValidationFailed):
        replace(BINDING, not_after=1 << 64)
    with pytest.raises(ValidationFailed):
        replace(BINDING, node=PeerId("Qm"))
    with pytest.raises(ValidationFailed, match="Ed25519"):
        bind(replace(BINDING, node=PeerId("12D3KooW" + "z" * 44)), sign_as_node, SIGN_AS_PROVIDER)
