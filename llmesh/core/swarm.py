"""What nodes of one swarm ask each other about its ledger, and how one introduces itself.

A swarm is named by the hash of its genesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmesh.core.binding import SignedBinding, check_binding
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ids import PeerId
from llmesh.core.ledgerlog import SignedEntry
from llmesh.core.operations import SignedOperation
from llmesh.errors import ValidationFailed

__all__ = [
    "Answer", "AskGenesis", "Entered", "Follow", "Introduction", "Question", "Submit", "check_introduction",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class AskGenesis:
    """How the swarm began; answered by one Introduction."""

    swarm: bytes


@dataclass(frozen=True, slots=True)
class Submit:
    """Enter this operation; answered by one Entered, by the issuer only."""

    swarm: bytes
    operation: SignedOperation


@dataclass(frozen=True, slots=True)
class Follow:
    """The log's entries above `after`, and from then on each as it comes."""

    swarm: bytes
    after: int


Question: TypeAlias = AskGenesis | Submit | Follow


@dataclass(frozen=True, slots=True)
class Introduction:
    """The genesis, how many entries follow it here, and, from the issuer, by which node it speaks now."""

    genesis: SignedGenesis
    height: int = 0
    issuer: SignedBinding | None = None


@dataclass(frozen=True, slots=True)
class Entered:
    """An operation is among the entries up to this one."""

    sequence: int


Answer: TypeAlias = Introduction | Entered | SignedEntry


def check_introduction(said: Introduction, swarm: bytes, peer: PeerId, now: float) -> bool:
    """Whether `peer`, which says this, is the issuer of the swarm.

    Raises ValidationFailed for the genesis of another swarm and for a binding that proves nothing.
    """
    if said.genesis.hash != swarm:
        raise ValidationFailed("The peer gave the genesis of another swarm.")
    if said.issuer is None:
        return False
    check_binding(said.issuer, now)
    binding, chain = said.issuer.binding, said.genesis.chain
    if (binding.node, binding.account, binding.chain) != (peer, chain.contract, chain):
        raise ValidationFailed("The peer says that it is the issuer, but its binding is another's.")
    return True
