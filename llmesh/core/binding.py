"""Key binding: one record by which a node's Ed25519 key and its secp256k1 key each vouch for the other.

Without it anyone could claim another's stake, or point another's node at its own account.  It travels
in the announcement and is good until it expires, on one chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from llmesh import crypto
from llmesh.core import typed
from llmesh.core.address import Address, address
from llmesh.core.ids import PeerId, peer_id
from llmesh.core.typed import Chain, Sign, word
from llmesh.errors import ValidationFailed

__all__ = ["BINDING_BYTES", "DOMAIN", "KeyBinding", "SignedBinding", "bind", "check_binding", "read_binding"]

DOMAIN = b"llmesh-key-binding"
"""What the Ed25519 signature is scoped to."""
_TYPED_DOMAIN = b"LLMESH Key Binding"
_BINDING = typed.type_hash("KeyBinding(bytes32 node,address account,uint64 notAfter)")
_RECORD = Struct(">32s20sQ20sQ")
_NODE_SIGNATURE = 64
BINDING_BYTES = _RECORD.size + _NODE_SIGNATURE + typed.SIGNATURE_BYTES
"""A signed binding on the wire."""


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """This node signs vouchers, terms and receipts as `account` on `chain`, until `not_after` (seconds)."""

    node: PeerId
    account: Address
    chain: Chain
    not_after: int

    def __post_init__(self) -> None:
        peer_id(self.node)
        address(self.account)
        if not 0 <= self.not_after < 1 << 64:
            raise ValidationFailed("The expiry of a binding must fit 64 bits.")

    @property
    def record(self) -> bytes:
        """The bytes that the node's key signs.  Raises ValidationFailed for what is no Ed25519 node."""
        chain = self.chain
        return _RECORD.pack(_public(self.node), self.account, chain.id, chain.contract, self.not_after)

    @property
    def digest(self) -> bytes:
        """What the account's key signs."""
        content = typed.struct(_BINDING, _public(self.node), word(self.account), word(self.not_after))
        return typed.digest(_TYPED_DOMAIN, self.chain, content)


@dataclass(frozen=True, slots=True)
class SignedBinding:
    """A binding with the signatures of both keys; nothing says yet that they are genuine."""

    binding: KeyBinding
    by_node: bytes
    by_account: bytes

    @property
    def packed(self) -> bytes:
        """The record and both signatures."""
        return self.binding.record + self.by_node + self.by_account


def bind(binding: KeyBinding, sign_as_node: Callable[[bytes], bytes], sign: Sign) -> SignedBinding:
    """Sign by both keys; `sign_as_node` is Ed25519 under `DOMAIN`."""
    return SignedBinding(binding, sign_as_node(binding.record), sign(binding.digest))


def check_binding(signed: SignedBinding, now: float) -> None:
    """Refuse a binding that has expired at `now`, or that either key has not signed.

    Raises ValidationFailed.
    """
    binding = signed.binding
    if binding.not_after <= now:
        raise ValidationFailed(f"The binding of {binding.node} to its account has expired.")
    if not crypto.verify(_public(binding.node), DOMAIN, binding.record, signed.by_node):
        raise ValidationFailed(f"{binding.node} has not signed the binding to its account.")
    if typed.signer_of(binding.digest, signed.by_account, "a key binding") != binding.account:
        raise ValidationFailed(f"The account named has not signed the binding to {binding.node}.")


def read_binding(packed: bytes) -> SignedBinding:
    """The inverse of `packed`; checks the form only.  Raises ValidationFailed."""
    if len(packed) != BINDING_BYTES:
        raise ValidationFailed(f"A key binding takes {BINDING_BYTES} bytes, not {len(packed)}.")
    node, account, number, contract, not_after = _RECORD.unpack(packed[: _RECORD.size])
    chain = Chain(number, Address(contract))
    binding = KeyBinding(PeerId(crypto.peer_id_of(node)), Address(account), chain, not_after)
    signatures = packed[_RECORD.size :]
    return SignedBinding(binding, signatures[:_NODE_SIGNATURE], signatures[_NODE_SIGNATURE:])


def _public(node: PeerId) -> bytes:
    try:
        return crypto.public_key_of(node)
    except ValueError:
        raise ValidationFailed(f"{node} does not name an Ed25519 key.") from None
