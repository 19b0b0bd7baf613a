"""Digests and signatures as plain functions: the one place that names the libraries behind them."""

from __future__ import annotations

import hashlib

import nacl.exceptions
import nacl.signing

__all__ = ["peer_id_of", "public_key_of", "sha256_hex", "sign", "verify"]

# A libp2p peer id of an Ed25519 key is its protobuf form under the identity multihash
# (libp2p specs, peer-ids): 00 24 | 08 01 12 20 | 32 bytes of key.
_PREFIX = bytes.fromhex("002408011220")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def sha256_hex(data: bytes) -> str:
    """SHA-256 (FIPS 180-4) as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sign(seed: bytes, domain: bytes, message: bytes) -> bytes:
    """64 bytes of Ed25519 signature (RFC 8032) by the key of a 32-byte seed.

    `domain` names the kind of record, so that a signature of one kind never passes for another.
    """
    return nacl.signing.SigningKey(seed).sign(_scoped(domain, message)).signature


def verify(public_key: bytes, domain: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the 32-byte key signed this message under this domain."""
    if len(signature) != 64:
        return False
    try:
        nacl.signing.VerifyKey(public_key).verify(_scoped(domain, message), signature)
    except nacl.exceptions.CryptoError:
        return False
    return True


def peer_id_of(public_key: bytes) -> str:
    """The libp2p peer id (base58) of a 32-byte Ed25519 public key."""
    number = int.from_bytes(_PREFIX + public_key, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _BASE58[rest] + digits
    return "1" + digits  # one leading zero byte


def public_key_of(peer_id: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id.  Raises ValueError for any other key type."""
    number = 0
    for digit in peer_id:
        number = number * 58 + _BASE58.index(digit)
    raw = number.to_bytes(38, "big") if number < 1 << 304 else b""
    if not raw.startswith(_PREFIX) or not peer_id.startswith("1"):
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[len(_PREFIX) :]


def _scoped(domain: bytes, message: bytes) -> bytes:
    return len(domain).to_bytes(1, "big") + domain + message
