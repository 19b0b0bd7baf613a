"""Accuser: notices a provider that signed what convicts it, and has the ledger take its stake.

It sees the receipts that this node gets as a payer, by answers and by agreeing on a channel.  Two that
differ for one attempt, or one that keeps not to the terms it names, go to the ledger as evidence; the
intent in the outbox is what the wallet tells of it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias, TypeVar

import trio

from llmesh.core.address import Address, address_text
from llmesh.core.evidence import Equivocation, Evidence, Overcharge, case_of, convict
from llmesh.core.ids import AttemptId
from llmesh.core.operations import Slash
from llmesh.core.receipt import SignedReceipt, check_receipt
from llmesh.core.terms import SignedTerms
from llmesh.core.voucher import ChannelId
from llmesh.errors import MeshError, ValidationFailed
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.journal.receipts import receipts_of
from llmesh.mesh.teller import Teller

__all__ = ["Accuser"]

log = logging.getLogger(__name__)

REMEMBERED = 4096
"""Receipts, and terms, that are held against what comes later; older ones are in the Journal."""
WAITING = 256
"""Receipts and cases that wait for `run`; beyond, they are dropped."""

_Key: TypeAlias = tuple[Address, ChannelId, AttemptId]
_K = TypeVar("_K")
_V = TypeVar("_V")


class Accuser:
    """Accuses through `teller`; `run` is a task to run beside."""

    def __init__(self, teller: Teller, journal: Journal) -> None:
        self._teller = teller
        self._journal = journal
        self._chain = teller.chain
        self._terms: OrderedDict[bytes, SignedTerms] = OrderedDict()
        self._heard: OrderedDict[_Key, SignedReceipt] = OrderedDict()
        self._accused: OrderedDict[bytes, None] = OrderedDict()
        self._send, self._receive = trio.open_memory_channel[SignedReceipt | Evidence](WAITING)

    def know(self, offer: bytes, terms: SignedTerms) -> None:
        """Something is bought under these terms, whose digest is `offer`."""
        if offer not in self._terms:
            _remember(self._terms, offer, terms)

    def hear(self, receipt: SignedReceipt) -> None:
        """A receipt has come; nothing about it need have been checked."""
        said, charge = receipt.receipt, receipt.charge
        if not charge.price:
            return
        key = said.provider, charge.channel, said.attempt
        other = self._heard.get(key)
        if other is None:
            _remember(self._heard, key, receipt)
        elif other.receipt != said and not self._suspect(Equivocation(other, receipt)):
            self._heard[key] = receipt if self._is_genuine(receipt) else other
        terms = self._terms.get(said.offer)
        if terms is not None and (charge.price > terms.terms.price or said.work.model != terms.terms.model):
            self._suspect(Overcharge(receipt, terms))

    def compare(self, receipts: Iterable[SignedReceipt]) -> None:
        """Receipts that a provider shows later on: hold them against those in the Journal as well."""
        for receipt in receipts:
            self.hear(receipt)
            self._leave(receipt)

    async def run(self) -> None:
        """Accuse, until cancelled."""
        async for found in self._receive:
            try:
                if isinstance(found, SignedReceipt):
                    await self._recall(found)
                else:
                    await self._teller.perform(Slash(found))
                    log.warning("the ledger has taken the stake of a provider that cheated")
            except MeshError as error:
                log.warning("a provider that cheated keeps its stake so far: %s", error.message)

    def _suspect(self, evidence: Evidence) -> bool:
        """Whether it proves anything; then it is on its way to the ledger."""
        try:
            guilty = convict(evidence, self._chain)
        except ValidationFailed:
            return False
        case = case_of(evidence)
        if case not in self._accused:
            _remember(self._accused, case, None)
            log.error("The provider %s has signed what convicts it of cheating.", address_text(guilty))
            self._leave(evidence)
        return True

    def _leave(self, found: SignedReceipt | Evidence) -> None:
        try:
            self._send.send_nowait(found)
        except trio.WouldBlock:
            log.warning("too much waits to be held against providers; some of it is dropped")

    async def _recall(self, receipt: SignedReceipt) -> None:
        attempt = receipt.attempt
        for row in await self._journal.read(receipts_of, attempt.request):
            if row.side is Side.PAYER and row.signed.attempt == attempt:
                self.hear(row.signed)

    def _is_genuine(self, receipt: SignedReceipt) -> bool:
        try:
            check_receipt(receipt, self._chain)
        except ValidationFailed:
            return False
        return True


def _remember(known: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    known[key] = value
    if len(known) > REMEMBERED:
        known.popitem(last=False)
