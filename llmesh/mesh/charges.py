"""Charges: which attempts this node has a receipt for, so that most need no look at the disk."""

from __future__ import annotations

from llmesh.core.ids import AttemptId, PeerId
from llmesh.core.voucher import ChannelId
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal
from llmesh.journal.receipts import ReceiptRow, charged_attempts, find_receipt

__all__ = ["Charges"]

MOST = 200_000
"""Attempts that are known, by their hashes, to have a receipt; with more the Journal is always asked."""


class Charges:
    """One for all channels: an attempt may come back on another, or by another peer."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: set[int] = set()
        self._complete = False

    async def find(self, peer: PeerId, channel: ChannelId, attempt: AttemptId) -> ReceiptRow | None:
        """The receipt that a peer, or whoever used that channel, has for an attempt.

        Raises TransactionFailed where the Journal cannot be read.
        """
        if not self._complete and len(self._known) <= MOST:
            rows = await self._journal.read(charged_attempts, MOST + 1)
            self._known.update(map(hash, rows))
            self._complete = len(self._known) <= MOST
        if self._complete and hash(attempt) not in self._known:
            return None
        return await self._journal.read(find_receipt, Side.PROVIDER, peer, attempt, channel)

    def add(self, attempt: AttemptId) -> None:
        """The Journal has a receipt of this attempt from now on."""
        if len(self._known) <= MOST:
            self._known.add(hash(attempt))
        self._complete = self._complete and len(self._known) <= MOST
