"""Channel ids and vouchers: the same bytes as x402's own code gives, and nothing forged gets through."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from llmesh import crypto
from llmesh.core.address import NOBODY, Address
from llmesh.core.amount import Amount
from llmesh.core.typed import Chain
from llmesh.core.voucher import (
    ChannelConfig,
    ChannelId,
    SignedVoucher,
    Voucher,
    channel_id,
    check_voucher,
    read_voucher,
    sign_voucher,
    voucher_digest,
)
from llmesh.errors import ValidationFailed

from .oracle import X402_CONTRACT, x402_channel_id, x402_voucher

VECTORS = 1000
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRET = bytes(31) + b"\x07"
PAYER = Address(crypto.address_of(SECRET))
CHAIN = Chain((1 << 40) + 5, Address(bytes([9] * 20)))
CONFIG = ChannelConfig(PAYER, PAYER, Address(b"r" * 20), Address(b"r" * 20), CHAIN.contract, 900, bytes(32))
SIGNED = sign_voucher(Voucher(channel_id(CONFIG, CHAIN), Amount(500)), CHAIN, crypto.signer(SECRET))


def random_configs() -> Iterator[tuple[Random, ChannelConfig, Chain]]:
    rng = Random(402)
    for _ in range(VECTORS):
        parties = [Address(rng.randbytes(20)) for _ in range(5)]
        if rng.random() < 0.2:
            parties[1] = NOBODY
        delay = rng.choice((0, 900, (1 << 40) - 1, rng.getrandbits(40)))
        chain = Chain(rng.choice((1, 8453, rng.getrandbits(49) + 1)), X402_CONTRACT)
        yield rng, ChannelConfig(*parties, delay, rng.randbytes(32)), chain


def test_a_thousand_random_channel_ids_are_those_of_x402() -> None:
    for _, config, chain in random_configs():
        assert channel_id(config, chain) == x402_channel_id(config, chain)


def test_a_thousand_random_vouchers_are_those_of_x402() -> None:
    for rng, config, chain in random_configs():
        secret, ceiling = rng.randbytes(32), rng.choice((0, (1 << 128) - 1, rng.getrandbits(128)))
        voucher = Voucher(channel_id(config, chain), Amount(ceiling))
        ours = sign_voucher(voucher, chain, crypto.signer(secret))
        # RFC 6979: one key, one digest, one signature.
        assert (voucher_digest(voucher, chain), ours.signature) == x402_voucher(voucher, chain, secret)


def test_a_genuine_voucher_passes_and_survives_the_wire() -> None:
    check_voucher(SIGNED, CONFIG, CHAIN)
    assert read_voucher(SIGNED.packed) == SIGNED


def test_the_payer_signs_where_nobody_else_may() -> None:
    config = ChannelConfig(PAYER, NOBODY, CONFIG.receiver, CONFIG.receiver, CHAIN.contract, 900, bytes(32))
    voucher = Voucher(channel_id(config, CHAIN), Amount(1))
    check_voucher(sign_voucher(voucher, CHAIN, crypto.signer(SECRET)), config, CHAIN)


@pytest.mark.parametrize("cut", [0, 1, 32, 48, 112, 114])
def test_a_truncated_or_longer_voucher_is_refused(cut: int) -> None:
    with pytest.raises(ValidationFailed, match="113 bytes"):
        read_voucher((SIGNED.packed + b"\0")[:cut])


def test_every_flipped_byte_of_a_voucher_is_found() -> None:
    for position in range(len(SIGNED.packed)):
        packed = bytearray(SIGNED.packed)
        packed[position] ^= 1 + position
        with pytest.raises(ValidationFailed):
            check_voucher(read_voucher(bytes(packed)), CONFIG, CHAIN)


def forged() -> dict[str, tuple[SignedVoucher, ChannelConfig, Chain]]:
    other_key = crypto.signer(bytes(31) + b"\x08")
    salted = ChannelConfig(PAYER, PAYER, CONFIG.receiver, CONFIG.receiver, CHAIN.contract, 900, b"s" * 32)
    other_chain, other_contract = Chain(CHAIN.id + 1, CHAIN.contract), Chain(CHAIN.id, Address(b"c" * 20))
    r, s, v = SIGNED.signature[:32], int.from_bytes(SIGNED.signature[32:64], "big"), SIGNED.signature[64]
    high = r + (ORDER - s).to_bytes(32, "big") + bytes((55 - v,))
    return {
        "wrong key": (sign_voucher(SIGNED.voucher, CHAIN, other_key), CONFIG, CHAIN),
        "other channel": (SIGNED, salted, CHAIN),
        "other chain": (SIGNED, CONFIG, other_chain),
        "other contract": (SIGNED, CONFIG, other_contract),
        "signed for another chain": (
            sign_voucher(SIGNED.voucher, other_chain, crypto.signer(SECRET)),
            CONFIG,
            CHAIN,
        ),
        "high s": (SignedVoucher(SIGNED.voucher, high), CONFIG, CHAIN),
        "other v": (SignedVoucher(SIGNED.voucher, SIGNED.signature[:64] + bytes((55 - v,))), CONFIG, CHAIN),
        "raw v": (SignedVoucher(SIGNED.voucher, SIGNED.signature[:64] + bytes((v - 27,))), CONFIG, CHAIN),
        "zero": (SignedVoucher(SIGNED.voucher, bytes(64) + b"\x1b"), CONFIG, CHAIN),
        "raised": (
            SignedVoucher(Voucher(SIGNED.voucher.channel, Amount(501)), SIGNED.signature),
            CONFIG,
            CHAIN,
        ),
    }


@pytest.mark.parametrize("what", forged())
def test_a_forged_voucher_is_refused(what: str) -> None:
    with pytest.raises(ValidationFailed):
        check_voucher(*forged()[what])


@pytest.mark.parametrize(
    ("delay", "salt", "payer"),
    [
        (-1, bytes(32), PAYER),
        (1 << 40, bytes(32), PAYER),
        (900, bytes(31), PAYER),
        (900, bytes(32), b"short"),
    ],
)
def test_a_malformed_channel_is_refused(delay: int, salt: bytes, payer: bytes) -> None:
    with pytest.raises(ValidationFailed):
        ChannelConfig(Address(payer), PAYER, PAYER, PAYER, PAYER, delay, salt)


def test_malformed_ids_and_chains_are_refused() -> None:
    with pytest.raises(ValidationFailed):
        Voucher(ChannelId(b"short"), Amount(1))
    for chain in (0, -1, 1 << 64):
        with pytest.raises(ValidationFailed):
            Chain(chain, CHAIN.contract)
