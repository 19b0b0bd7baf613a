"""Genesis: the signed record that a local ledger begins with, and all of its names come from.

Its hash gives the ledger a chain id that no EVM chain has, and its issuer stands where a contract
would; so vouchers, receipts and channel ids are the same bytes on either kind of ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmesh import crypto
from llmesh.core import fields, typed
from llmesh.core.address import Address, address
from llmesh.core.amount import Amount
from llmesh.core.encoding import Json, canonical_json
from llmesh.core.typed import Chain, Sign
from llmesh.errors import ValidationFailed

__all__ = ["MAX_ALLOCATIONS", "Genesis", "SignedGenesis", "chain_of", "read_genesis", "sign_genesis"]

MAX_ALLOCATIONS = 256
MAX_UNBONDING = 90 * 86_400
_DOMAIN = b"LLMESH Genesis"
_GENESIS = typed.type_hash("Genesis(bytes32 record)")
_FIRST_ID = 1 << 40


@dataclass(frozen=True, slots=True)
class Genesis:
    """How a swarm's money begins: who issues it, who has what first, and the rules that are figures.

    `min_stake` is what a provider bonds at least, `unbonding` the seconds until a stake is free again,
    `created_at` seconds since 1970 (UTC), where the ledger's clock begins.
    """

    issuer: Address
    allocations: tuple[tuple[Address, Amount], ...]
    min_stake: Amount
    unbonding: int
    created_at: int

    def __post_init__(self) -> None:
        address(self.issuer)
        if len({owner for owner, _ in self.allocations}) < len(self.allocations):
            raise ValidationFailed("A genesis allocates to the same address twice.")
        if len(self.allocations) > MAX_ALLOCATIONS:
            raise ValidationFailed(f"A genesis allocates to at most {MAX_ALLOCATIONS} addresses.")
        if not (0 <= self.unbonding <= MAX_UNBONDING and 0 <= self.created_at < 1 << 40):
            raise ValidationFailed(f"Unbonding takes 0 to {MAX_UNBONDING} seconds, and time must be sane.")
        _ = self.minted

    @property
    def minted(self) -> Amount:
        """All the money there is at first.  Raises ValidationFailed where it is 2**128 or more."""
        return Amount(sum(amount.micro for _, amount in self.allocations))


@dataclass(frozen=True, slots=True)
class SignedGenesis:
    """A genesis as it is kept and sent: canonical JSON and 65 bytes of its issuer's signature over it."""

    payload: bytes
    signature: bytes
    genesis: Genesis
    hash: bytes
    chain: Chain


def chain_of(genesis_hash: bytes, issuer: Address) -> Chain:
    """The ledger that signatures count on; ids stay below 2**49, so that any program can hold them."""
    return Chain(_FIRST_ID + int.from_bytes(genesis_hash[:6], "big"), issuer)


def sign_genesis(genesis: Genesis, sign: Sign) -> SignedGenesis:
    """Sign by the issuer's key.  Raises ValidationFailed for what others would refuse."""
    payload = canonical_json(_to_json(genesis))
    return read_genesis(payload, sign(_digest(payload, genesis.issuer)))


def read_genesis(payload: bytes, signature: bytes) -> SignedGenesis:
    """Check a genesis from anywhere.  Raises ValidationFailed for whatever its issuer has not signed."""
    genesis = _from_json(fields.parse(payload, "A genesis"))
    if typed.signer_of(_digest(payload, genesis.issuer), signature, "a genesis") != genesis.issuer:
        raise ValidationFailed("The genesis is not signed by the issuer that it names.")
    mark = crypto.keccak256(payload)
    return SignedGenesis(payload, signature, genesis, mark, chain_of(mark, genesis.issuer))


def _digest(payload: bytes, issuer: Address) -> bytes:
    mark = crypto.keccak256(payload)
    return typed.digest(_DOMAIN, chain_of(mark, issuer), typed.struct(_GENESIS, mark))


def _to_json(genesis: Genesis) -> Json:
    return {
        "allocations": [[owner.hex(), str(amount.micro)] for owner, amount in genesis.allocations],
        "created_at": genesis.created_at,
        "currency": "MESH",
        "issuer": genesis.issuer.hex(),
        "min_stake": str(genesis.min_stake.micro),
        "unbonding": genesis.unbonding,
    }


def _from_json(record: dict[str, Json]) -> Genesis:
    fields.exactly(record, {"allocations", "created_at", "currency", "issuer", "min_stake", "unbonding"})
    if record["currency"] != "MESH":
        raise ValidationFailed("A genesis is of MESH and of nothing else.")
    return Genesis(
        Address(fields.hexed(record["issuer"], 20)),
        tuple(_allocation(item) for item in fields.listed(record["allocations"], MAX_ALLOCATIONS)),
        fields.amount(record["min_stake"]),
        fields.whole(record["unbonding"]),
        fields.whole(record["created_at"]),
    )


def _allocation(item: Json) -> tuple[Address, Amount]:
    pair = fields.listed(item, 2)
    if len(pair) != 2:
        raise ValidationFailed("An allocation is an address and an amount.")
    return Address(fields.hexed(pair[0], 20)), fields.amount(pair[1])
