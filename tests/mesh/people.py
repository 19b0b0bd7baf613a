"""Names, and the keys that belong to them: who takes part in small meshes, each with an account."""

from __future__ import annotations

from functools import lru_cache, partial

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.binding import DOMAIN
from llmesh.core.credentials import Credentials
from llmesh.core.genesis import Genesis, sign_genesis
from llmesh.core.ids import PeerId
from llmesh.core.signer import Signer
from llmesh.core.typed import Chain

START = 1_800_000_000


def seed(name: str) -> bytes:
    """32 bytes that only this name has."""
    return crypto.keccak256(name.encode())


@lru_cache
def peer(name: str) -> PeerId:
    """The node of that name."""
    return PeerId(crypto.identity_of(seed(name)))


@lru_cache
def signer(name: str) -> Signer:
    """The account of that node."""
    return Signer(Address(crypto.address_of(seed(name))), crypto.signer(seed(name)))


BANK = signer("bank")
GENESIS = sign_genesis(
    Genesis(
        BANK.address,
        tuple((signer(name).address, Amount.parse(1_000)) for name in ("ann", "bob", "cat", "dan", "eve")),
        Amount(0),
        3_600,
        START,
    ),
    BANK.sign,
)
CHAIN = GENESIS.chain


def credentials(name: str, chain: Chain = CHAIN) -> Credentials:
    """How that node shows its account to others."""
    return Credentials(peer(name), chain, signer(name), partial(crypto.sign, seed(name), DOMAIN))
