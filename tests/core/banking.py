"""A small swarm with its own ledger, for tests of the log and its rules."""

from __future__ import annotations

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Books
from llmesh.core.genesis import Genesis, sign_genesis
from llmesh.core.ledgerlog import Head, SignedEntry, append, first_head
from llmesh.core.operations import ClaimItem, Operation, SignedOperation, sign_operation
from llmesh.core.voucher import ChannelConfig, Voucher, channel_id, sign_voucher

SECRETS = [bytes(31) + bytes((n,)) for n in range(10, 14)]
SIGN = {crypto.address_of(secret): crypto.signer(secret) for secret in SECRETS}
ISSUER, ALICE, BOB, CAROL = (Address(crypto.address_of(secret)) for secret in SECRETS)
START, DELAY, UNBONDING = 1_800_000_000, 900, 3_600
GENESIS = sign_genesis(
    Genesis(ISSUER, ((ISSUER, Amount(1_000_000)), (ALICE, Amount(1_000))), Amount(100), UNBONDING, START),
    SIGN[ISSUER],
)
CHAIN = GENESIS.chain


def config(payer: Address, receiver: Address, salt: int = 0, delay: int = DELAY) -> ChannelConfig:
    return ChannelConfig(payer, payer, receiver, receiver, ISSUER, delay, bytes((salt,)) * 32)


def claim_of(channel: ChannelConfig, ceiling: int, total: int) -> ClaimItem:
    voucher = Voucher(channel_id(channel, CHAIN), Amount(ceiling))
    return ClaimItem(sign_voucher(voucher, CHAIN, SIGN[channel.payer]), Amount(total))


class Bank:
    """The issuer: books, a log, and a clock that a test moves."""

    def __init__(self) -> None:
        self.books, self.head, self.now = Books(GENESIS), first_head(GENESIS), START
        self.log: list[SignedEntry] = []

    @property
    def records(self) -> list[tuple[bytes, bytes]]:
        return [(entry.payload, entry.signature) for entry in self.log]

    def signed(self, actor: Address, operation: Operation) -> SignedOperation:
        nonce = self.books.account(actor).nonce + 1
        return sign_operation(actor, nonce, operation, CHAIN, SIGN[actor])

    def do(self, actor: Address, operation: Operation) -> Head:
        return self.enter(self.signed(actor, operation))

    def enter(self, signed: SignedOperation) -> Head:
        entry, changes = append(self.books, self.head, signed, self.now, SIGN[ISSUER])
        self.books.take(changes)
        self.log.append(entry)
        self.head = entry.head
        return self.head

    def balance(self, owner: Address) -> int:
        return self.books.account(owner).balance.micro
