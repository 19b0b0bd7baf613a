"""What others' code says of the same records: x402's SDK, and eth-account's EIP-712."""

from __future__ import annotations

import sys
from typing import Any

_limit = sys.getrecursionlimit()
from eth_account import Account  # noqa: E402
from eth_account.messages import SignableMessage, encode_typed_data  # noqa: E402
from x402.mechanisms.evm.batch_settlement import constants, utils  # noqa: E402
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig as OracleConfig  # noqa: E402

# One of them (py_ecc) raises the limit so far that deeply nested JSON crashes the interpreter.
sys.setrecursionlimit(_limit)

from llmesh import crypto  # noqa: E402
from llmesh.core.address import address_from_text, address_text  # noqa: E402
from llmesh.core.typed import Chain  # noqa: E402
from llmesh.core.voucher import ChannelConfig, Voucher  # noqa: E402

X402_CONTRACT = address_from_text(constants.BATCH_SETTLEMENT_ADDRESS)
"""The one contract that x402's SDK knows."""


def x402_channel_id(config: ChannelConfig, chain: Chain) -> bytes:
    """By x402's own function."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer)
    texts = [address_text(party) for party in (*parties, config.token)]
    oracle = OracleConfig(*texts, config.withdraw_delay, "0x" + config.salt.hex())
    return bytes.fromhex(utils.compute_channel_id(oracle, chain.id)[2:])


def x402_voucher(voucher: Voucher, chain: Chain, secret: bytes) -> tuple[bytes, bytes]:
    """Digest and signature by x402's domain and types, and eth-account's signing."""
    domain = utils.get_batch_settlement_eip712_domain(chain.id)
    message = {"channelId": bytes(voucher.channel), "maxClaimableAmount": voucher.ceiling.micro}
    signed = Account.sign_message(encode_typed_data(domain, constants.VOUCHER_TYPES, message), secret)
    return bytes(signed.message_hash), bytes(signed.signature)


def eip712_digest(domain: str, chain: Chain, record: str, types: str, values: list[Any]) -> bytes:
    """By eth-account, from the text of the record's type."""
    fields = [dict(zip(("type", "name"), field.split(" "), strict=True)) for field in types.split(",")]
    contract = "0x" + chain.contract.hex()
    scope = {"name": domain, "version": "1", "chainId": chain.id, "verifyingContract": contract}
    message = dict(zip((field["name"] for field in fields), values, strict=True))
    signable: SignableMessage = encode_typed_data(scope, {record: fields}, message)
    return crypto.keccak256(b"\x19" + signable.version + signable.header + signable.body)
