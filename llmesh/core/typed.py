"""Typed data (EIP-712) packed by hand: what a secp256k1 key signs here, and a contract can check.

No encoder and no schema at run time: each record states its type and its words once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from llmesh import crypto
from llmesh.core.address import Address, address
from llmesh.errors import ValidationFailed

__all__ = ["SIGNATURE_BYTES", "Chain", "Sign", "digest", "signer_of", "struct", "type_hash", "word"]

SIGNATURE_BYTES = 65
"""r | s | v of a secp256k1 signature."""

Sign: TypeAlias = Callable[[bytes], bytes]
"""Signs a 32-byte digest by one secp256k1 key; `crypto.signer` makes it."""

_PREFIX = b"\x19\x01"
_VERSION = crypto.keccak256(b"1")
_DOMAIN = crypto.keccak256(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@dataclass(frozen=True, slots=True)
class Chain:
    """The ledger that signatures count on: an EVM chain and contract, or a local ledger's stand-ins.

    A local ledger's `id` comes from its genesis (2**40 and above), its issuer stands as `contract`.
    """

    id: int
    contract: Address

    def __post_init__(self) -> None:
        address(self.contract)
        if not 0 < self.id < 1 << 64:
            raise ValidationFailed(f"A chain's id lies between 1 and 2**64 - 1; {self.id} does not.")


@lru_cache(maxsize=256)
def _separator(name: bytes, chain: Chain) -> bytes:
    words = (_DOMAIN, crypto.keccak256(name), _VERSION, word(chain.id), word(chain.contract))
    return _PREFIX + crypto.keccak256(b"".join(words))


def type_hash(definition: str) -> bytes:
    """The hash that stands for a record's type, such as `Voucher(bytes32 channelId,...)`."""
    return crypto.keccak256(definition.encode())


def word(value: int | bytes) -> bytes:
    """One 32-byte word: whole numbers and addresses to the right, bytes32 as they are."""
    if isinstance(value, int):
        return value.to_bytes(32, "big")
    return value.rjust(32, b"\0")


def struct(kind: bytes, *words: bytes) -> bytes:
    """The hash of one record: its type and its words of 32 bytes each."""
    return crypto.keccak256(kind + b"".join(words))


def digest(name: bytes, chain: Chain, content: bytes) -> bytes:
    """What is signed: a record's hash under the domain `name`, version 1, of a chain."""
    return crypto.keccak256(_separator(name, chain) + content)


def signer_of(signed: bytes, signature: bytes, what: str) -> Address:
    """The address whose key signed this digest.

    Raises ValidationFailed, with `what` in its words, for what is no signature in its one valid form.
    """
    try:
        return Address(crypto.recover(signed, signature))
    except ValueError as error:
        raise ValidationFailed(f"The signature of {what} is invalid: {error}.") from None
