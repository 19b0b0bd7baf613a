"""A provider that sells one model, and ann who has a channel with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.channel import Sync, SyncRequest
from llmesh.core.exchange import Event
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.inference import Attempt, Consumer
from llmesh.core.model import Card
from llmesh.core.operations import sign_operation
from llmesh.core.payment import Payment, Reconcile
from llmesh.core.terms import terms_digest
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, SignedVoucher, Voucher, channel_id, sign_voucher
from llmesh.journal.channels import find_channel
from llmesh.journal.columns import Side
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.provider import Provider
from llmesh.mesh.till import Till
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.echo import EchoRuntime
from tests.mesh.journals import QuickJournal
from tests.mesh.people import BANK, CHAIN, GENESIS, START, credentials, peer, signer

FEE = Amount(100)
MODEL = ModelId("a" * 64)
ANN, BOB = Consumer(peer("ann"), 1), Consumer(peer("bob"), 2)
OTHER = Chain(7, CHAIN.contract)
ORDER = int("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)


class Shop:
    """A provider, and ann who has a channel with it."""

    def __init__(self) -> None:
        self.runtime = EchoRuntime(words=1)
        self.ledger = MemoryLedger(GENESIS, BANK.sign, trio.current_time)
        self.journal = QuickJournal(peer("shop"))
        self.own = credentials("shop")
        self.now = 0.0
        self.config = self.channel("ann")
        self.id = channel_id(self.config, CHAIN)
        self.restart()

    def channel(self, name: str, salt: int = 0) -> ChannelConfig:
        payer, payee = signer(name).address, self.own.signer.address
        return ChannelConfig(payer, payer, payee, payee, CHAIN.contract, 900, bytes((salt,)) * 32)

    def restart(self) -> None:
        """As after a kill: memory is gone, the journal is not."""
        self.till = Till(self.own, self.journal, self.ledger, lambda: START + self.now)
        self.provider = Provider(peer("shop"), self.runtime, self.till)

    def take_other_channels(self, salt: int) -> None:
        """As after a restore: ann's channel is one of another salt from now on."""
        self.own = self.till.credentials = replace(self.own, salt=bytes((salt,)) * 32)
        self.config = self.channel("ann", salt)
        self.id = channel_id(self.config, CHAIN)

    async def deploy(self) -> None:
        bundle = Bundle(Path("/nowhere"), (), MODEL, "model.onnx")
        await self.provider.deploy(bundle, Card("senti"), FEE)

    async def open(self, deposit: int = 1_000) -> None:
        await self.deploy()
        operation = ops.Deposit(self.config, Amount(deposit))
        signed = sign_operation(signer("ann").address, 1, operation, CHAIN, signer("ann").sign)
        await self.ledger.submit(signed)
        await self.reconcile()

    async def reconcile(self, *lost: AttemptId, consumer: Consumer = ANN) -> Sync:
        binding = credentials("ann").binding(START)
        asked = Reconcile(self.config, binding, SyncRequest(None, None, lost), Amount(0))
        answer = await self.provider.answer(asked, consumer)
        assert isinstance(answer, Sync)
        return answer

    @property
    def offer(self) -> bytes:
        return terms_digest(self.own.terms(self.provider.offers[0], START).terms, CHAIN)

    def voucher(self, ceiling: int, by: str = "ann", chain: Chain = CHAIN) -> SignedVoucher:
        return sign_voucher(Voucher(self.id, Amount(ceiling)), chain, signer(by).sign)

    def attempt(self, number: int, voucher: SignedVoucher | None, **values: object) -> Attempt:
        payment = Payment(self.id, self.offer, voucher)
        asked = {"text": "one two three", **values}
        return Attempt(RequestId("1" * 32), number, MODEL, asked, FEE, 5.0, payment)  # type: ignore[arg-type]

    async def serve(self, attempt: Attempt, consumer: Consumer = ANN) -> list[Event]:
        async with self.provider.serve(attempt, consumer) as events:
            return [event async for event in events]

    async def charged(self) -> int:
        row = await self.journal.read(find_channel, Side.PROVIDER, self.id)
        return row.charged.micro if row else 0
