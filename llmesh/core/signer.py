"""Signer: an account's address with what signs by its key; the key itself stays where it was read."""

from __future__ import annotations

from dataclasses import dataclass

from llmesh.core.address import Address
from llmesh.core.typed import Sign

__all__ = ["Signer"]


@dataclass(frozen=True, slots=True)
class Signer:
    """`sign` is by the secp256k1 key that `address` names; neither shows the key."""

    address: Address
    sign: Sign
