"""Digests and signatures as plain functions: the one place that names the libraries behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache

import coincurve
import nacl.exceptions
import nacl.signing
from blake3 import blake3
from Crypto.Hash import keccak

__all__ = [
    "address_of", "blake3_of", "derived_secret", "identity_of", "keccak256", "peer_id_of",
    "public_key_of", "recover", "sha256_hex", "sign", "signer", "verify",
]  # fmt: skip

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


def identity_of(seed: bytes) -> str:
    """The peer id of the key of a 32-byte seed."""
    return peer_id_of(bytes(nacl.signing.SigningKey(seed).verify_key))


def derived_secret(seed: bytes, purpose: bytes) -> bytes:
    """32 bytes that only the holder of the seed can make, others for each purpose of at most 16 bytes.

    Keyed BLAKE2b (RFC 7693).
    """
    return hashlib.blake2b(key=seed, digest_size=32, person=purpose).digest()


def public_key_of(peer_id: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id.  Raises ValueError for any other key type."""
    number = 0
    for digit in peer_id:
        number = number * 58 + _BASE58.index(digit)
    raw = number.to_bytes(38, "big") if number < 1 << 304 else b""
    if not raw.startswith(_PREFIX) or not peer_id.startswith("1"):
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[len(_PREFIX) :]


def blake3_of(parts: Iterable[bytes]) -> bytes:
    """32 bytes of BLAKE3 (the paper of 2020) over the parts, one after the other; fast on long tensors."""
    digest = blake3()
    for part in parts:
        digest.update(part)
    return digest.digest()


def keccak256(data: bytes) -> bytes:
    """32 bytes of Keccak-256, the hash of Ethereum (its padding is not that of SHA-3)."""
    return keccak.new(digest_bits=256, data=data).digest()


def signer(secret: bytes) -> Callable[[bytes], bytes]:
    """What signs 32-byte digests by this 32-byte secp256k1 key: 65 bytes r | s | v, s low, v 27 or 28.

    The nonce is that of RFC 6979, so one digest has one signature.  Raises ValueError for a secret
    that is no key.
    """
    key = coincurve.PrivateKey(_exactly(secret, 32))

    def sign_digest(digest: bytes) -> bytes:
        signature = key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    return sign_digest


def recover(digest: bytes, signature: bytes) -> bytes:
    """The 20-byte address of the secp256k1 key that made a signature of the form `signer` gives.

    Raises ValueError for any other form, a high s among them (EIP-2), as a contract would.  To recover
    costs little more than to verify by a known key, and v is checked as well.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise ValueError("not a signature of 65 bytes that ends in 27 or 28")
    if signature[32:64] > _HALF_ORDER:
        raise ValueError("the s of a signature must be low")
    compact = signature[:64] + bytes((signature[64] - 27,))
    key = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    return _address_of_key(key.format(compressed=False))


def address_of(secret: bytes) -> bytes:
    """The 20-byte address of a 32-byte secp256k1 key.  Raises ValueError for what is no key."""
    return _address_of_key(coincurve.PrivateKey(_exactly(secret, 32)).public_key.format(compressed=False))


# Half of the order of secp256k1 (SEC 2, 2.4.1), as bytes.
_HALF_ORDER = bytes.fromhex("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0")


@lru_cache(maxsize=4096)
def _address_of_key(public_key: bytes) -> bytes:
    """Few keys sign most of what comes, so that the hash is rarely made twice."""
    return keccak256(public_key[1:])[12:]


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"a secp256k1 key takes {size} bytes, not {len(data)}")
    return data


def _scoped(domain: bytes, message: bytes) -> bytes:
    return len(domain).to_bytes(1, "big") + domain + message
