"""Channels' identities and vouchers, byte for byte those of x402's `batch-settlement` scheme on EVM.

A voucher says: the provider may have claimed up to so much, in all, from this channel.  Ceilings only
grow, so an old voucher harms nobody and order does not matter.  No state here; that is core.channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import NewType

from llmesh.core import typed
from llmesh.core.address import NOBODY, Address, address
from llmesh.core.amount import Amount
from llmesh.core.typed import Chain, Sign, word
from llmesh.errors import ValidationFailed

__all__ = [
    "CONFIG_BYTES", "DOMAIN", "VOUCHER_BYTES", "ChannelConfig", "ChannelId", "SignedVoucher", "Voucher",
    "channel_id", "check_voucher", "read_config", "read_voucher", "sign_voucher", "voucher_digest",
]  # fmt: skip

ChannelId = NewType("ChannelId", bytes)
"""32 bytes: the EIP-712 digest of a channel's configuration on its chain."""

DOMAIN = b"x402 Batch Settlement"
"""Name of the EIP-712 domain of channel ids and vouchers, x402's own."""
VOUCHER_BYTES = 32 + 16 + typed.SIGNATURE_BYTES
"""A signed voucher on the wire."""
_PACKED = Struct(">20s20s20s20s20sQ32s")
CONFIG_BYTES = _PACKED.size
"""A channel's configuration on the wire."""
_CONFIG = typed.type_hash(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,"
    "address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER = typed.type_hash("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """What a channel is, for ever: another payer, receiver, delay or salt is another channel.

    `payer_authorizer` signs the vouchers (the payer itself where it is nobody); `receiver_authorizer`
    may claim in the receiver's name; `withdraw_delay` is in seconds; `salt` takes 32 bytes.
    """

    payer: Address
    payer_authorizer: Address
    receiver: Address
    receiver_authorizer: Address
    token: Address
    withdraw_delay: int
    salt: bytes

    def __post_init__(self) -> None:
        for party in (self.payer, self.payer_authorizer, self.receiver, self.receiver_authorizer, self.token):
            address(party)
        if not 0 <= self.withdraw_delay < 1 << 40:
            raise ValidationFailed("A channel's withdraw delay must fit 40 bits.")
        if len(self.salt) != 32:
            raise ValidationFailed(f"A channel's salt takes 32 bytes, not {len(self.salt)}.")

    @property
    def authorizer(self) -> Address:
        """Whose key must have signed the channel's vouchers."""
        return self.payer if self.payer_authorizer == NOBODY else self.payer_authorizer

    @property
    def packed(self) -> bytes:
        """The fields in their order, big-endian."""
        parties = (self.payer, self.payer_authorizer, self.receiver, self.receiver_authorizer)
        return _PACKED.pack(*parties, self.token, self.withdraw_delay, self.salt)


def read_config(packed: bytes) -> ChannelConfig:
    """The inverse of `packed`.  Raises ValidationFailed."""
    if len(packed) != CONFIG_BYTES:
        raise ValidationFailed(f"A channel's configuration takes {CONFIG_BYTES} bytes, not {len(packed)}.")
    *parties, delay, salt = _PACKED.unpack(packed)
    payer, payer_key, receiver, receiver_key, token = map(Address, parties)
    return ChannelConfig(payer, payer_key, receiver, receiver_key, token, delay, salt)


@lru_cache(maxsize=4096)
def channel_id(config: ChannelConfig, chain: Chain) -> ChannelId:
    """The name of this channel on this chain."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer)
    words = (*parties, config.token, config.withdraw_delay, config.salt)
    content = typed.struct(_CONFIG, *(word(value) for value in words))
    return ChannelId(typed.digest(DOMAIN, chain, content))


@dataclass(frozen=True, slots=True)
class Voucher:
    """At most `ceiling` may have been claimed from the channel, over its whole life."""

    channel: ChannelId
    ceiling: Amount

    def __post_init__(self) -> None:
        if len(self.channel) != 32:
            raise ValidationFailed(f"A channel's id takes 32 bytes, not {len(self.channel)}.")


@dataclass(frozen=True, slots=True)
class SignedVoucher:
    """A voucher with 65 bytes of secp256k1 signature; nothing says yet that it is genuine."""

    voucher: Voucher
    signature: bytes

    @property
    def ceiling(self) -> Amount:
        """The ceiling it states."""
        return self.voucher.ceiling

    @property
    def packed(self) -> bytes:
        """Channel id, ceiling (16 bytes, big-endian) and signature in one."""
        return self.voucher.channel + self.ceiling.micro.to_bytes(16, "big") + self.signature


def voucher_digest(voucher: Voucher, chain: Chain) -> bytes:
    """What its signature covers."""
    content = typed.struct(_VOUCHER, voucher.channel, word(voucher.ceiling.micro))
    return typed.digest(DOMAIN, chain, content)


def sign_voucher(voucher: Voucher, chain: Chain, sign: Sign) -> SignedVoucher:
    """Sign by the key of the channel's authorizer."""
    return SignedVoucher(voucher, sign(voucher_digest(voucher, chain)))


def check_voucher(signed: SignedVoucher, config: ChannelConfig, chain: Chain) -> None:
    """Refuse a voucher that is not this channel's on this chain, signed by its authorizer.

    Raises ValidationFailed.
    """
    if signed.voucher.channel != channel_id(config, chain):
        raise ValidationFailed("The voucher is for another channel or another chain.")
    who = typed.signer_of(voucher_digest(signed.voucher, chain), signed.signature, "a voucher")
    if who != config.authorizer:
        raise ValidationFailed("The voucher is not signed by the key that the channel names.")


def read_voucher(packed: bytes) -> SignedVoucher:
    """The inverse of `packed`; checks the size only.  Raises ValidationFailed."""
    if len(packed) != VOUCHER_BYTES:
        raise ValidationFailed(f"A voucher takes {VOUCHER_BYTES} bytes, not {len(packed)}.")
    ceiling = Amount(int.from_bytes(packed[32:48], "big"))
    return SignedVoucher(Voucher(ChannelId(packed[:32]), ceiling), packed[48:])
