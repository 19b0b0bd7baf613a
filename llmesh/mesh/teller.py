"""Teller: this node's own operations on the ledger, one after the other, each of them once.

What is to be done is durable in the Journal before the ledger hears of it, with its nonce, so that
after a crash the same signed operation goes out again (a signature is the same each time, RFC 6979)
and never a second one.  What the ledger refuses takes no nonce, so a nonce is given only when an
operation's turn has come.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from llmesh.core.address import Address
from llmesh.core.encoding import canonical_json, parse_canonical_json
from llmesh.core.evidence import Evidence
from llmesh.core.operations import (
    Operation,
    SignedOperation,
    Slash,
    Transfer,
    sign_operation,
    unsigned_from_json,
    unsigned_to_json,
)
from llmesh.core.signer import Signer
from llmesh.core.typed import Chain
from llmesh.errors import MeshError, TransactionFailed
from llmesh.journal.open import Journal
from llmesh.journal.outbox import (
    AddIntent,
    BuryIntent,
    CompleteIntent,
    DelayIntent,
    Intent,
    IntentState,
    intents_with,
    next_nonce,
    waiting_intents,
)
from llmesh.ledger.ledger import REFUSALS, Ledger

__all__ = ["KIND", "Accusation", "Sending", "Teller", "accusations", "sendings"]

log = logging.getLogger(__name__)

KIND = "ledger"
"""What its intents are called in the outbox."""
PAUSE, LONGEST = 1.0, 60.0
"""Seconds between tries while the ledger cannot be reached; each wait is twice the last."""


class Teller:
    """Performs operations by `signer`'s account on a ledger; `clock` gives seconds since 1970."""

    def __init__(self, ledger: Ledger, journal: Journal, signer: Signer, clock: Callable[[], float]) -> None:
        self.signer = signer
        self.chain = ledger.chain
        self._ledger = ledger
        self._journal = journal
        self._clock = clock
        # An account of another ledger is another account: what waits for that one is not sent to this.
        self._account = _account_of(ledger.chain, signer.address)
        self._turn = trio.Lock()
        self._left = trio.Event()

    async def perform(self, operation: Operation) -> None:
        """Do this on the ledger, after all that waits; on return it is durable there.

        Raises one of `REFUSALS` where the rules refuse it: nothing has changed and it is not tried
        again.  Raises TransactionFailed where the ledger cannot be reached or its answer was lost: from
        then on `run` sees to it, over restarts too, and a call for the same thing waits for that one
        instead of doing it twice.  The same holds after a cancel, unless it came before anything was
        written.  TransactionFailed also where the Journal cannot be written: then nothing was begun.
        """
        async with self._turn, self._minded():
            waiting = await self._waiting()
            content = canonical_json(unsigned_to_json(operation))
            own = next((intent for intent in waiting if intent.body == content), None)
            if own is None:
                own = await self._add(content, alone=not waiting)
                waiting.append(own)
            with _begun():
                await self._send_until(own, waiting)

    async def catch_up(self) -> None:
        """Do all that waits.  Raises TransactionFailed where the ledger does not take it yet."""
        async with self._turn, self._minded():
            for intent in await self._waiting():
                await self._send_other(intent)

    async def is_busy(self) -> bool:
        """Whether an operation waits for the ledger.  Raises TransactionFailed."""
        return bool(await self._waiting())

    async def run(self) -> None:
        """Send what is left over, in order and patiently, until cancelled."""
        pause = PAUSE
        while True:
            try:
                async with self._turn:
                    for intent in await self._waiting():
                        await self._send_other(intent)
                    self._left = trio.Event()
                await self._left.wait()
                pause = PAUSE
            except TransactionFailed as error:
                log.warning("an operation waits for the ledger: %s", error.message)
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST)

    @asynccontextmanager
    async def _minded(self) -> AsyncGenerator[None]:
        """Whatever the block leaves undone, `run` takes up."""
        try:
            yield
        except BaseException:
            self._left.set()
            raise

    async def _waiting(self) -> list[Intent]:
        return await self._journal.read(waiting_intents, KIND, self._account)

    async def _add(self, content: bytes, *, alone: bool) -> Intent:
        """Make it durable, with its nonce where it is its turn."""
        place = await self._journal.read(next_nonce, self._account)
        now = self._clock()
        reference = await self._next_nonce() if alone else b""
        name = f"{KIND} {self._account} {place}"
        intent = Intent(name, KIND, self._account, place, content, now, now, reference=reference)
        await self._journal.commit(AddIntent(intent))
        return intent

    async def _send_until(self, own: Intent, waiting: list[Intent]) -> None:
        for intent in waiting:
            if intent.id == own.id:
                await self._send(intent)
                return
            await self._send_other(intent)

    async def _send_other(self, intent: Intent) -> None:
        """One whose caller is gone: that it was refused is for the log."""
        try:
            await self._send(intent)
        except REFUSALS as error:
            log.error("the ledger refused an operation that waited for it: %s", error.message)

    async def _send(self, intent: Intent) -> None:
        signed = await self._signed(intent)
        try:
            await self._ledger.submit(signed)
        except REFUSALS as error:
            await self._journal.commit(BuryIntent(intent.id, error.message))
            raise
        except MeshError as error:
            await self._journal.commit(DelayIntent(intent.id, self._clock(), error.message))
            raise TransactionFailed(f"The ledger has not taken it yet: {error.message}") from error
        await self._journal.commit(CompleteIntent(intent.id))

    async def _signed(self, intent: Intent) -> SignedOperation:
        """The same each time: its nonce is durable before it is first sent."""
        nonce = intent.reference
        if not nonce:
            nonce = await self._next_nonce()
            await self._journal.commit(DelayIntent(intent.id, self._clock(), reference=nonce))
        operation = unsigned_from_json(parse_canonical_json(intent.body))
        number = int.from_bytes(nonce, "big")
        return sign_operation(self.signer.address, number, operation, self._ledger.chain, self.signer.sign)

    async def _next_nonce(self) -> bytes:
        account = await self._ledger.account(self.signer.address)
        return (account.nonce + 1).to_bytes(8, "big")


@contextmanager
def _begun() -> Iterator[None]:
    """What is in the outbox gets done, also where the ledger has taken it and the disk has not."""
    try:
        yield
    except TransactionFailed as error:
        step = "Do not ask for it again: the node goes on trying by itself, and does it once."
        raise TransactionFailed(error.message, next_step=step) from error


@dataclass(frozen=True, slots=True)
class Accusation:
    """Evidence that an account has brought to the ledger, and what became of it; `since` in seconds.

    `refused` says why the ledger would not have it.
    """

    evidence: Evidence
    since: float
    state: IntentState
    refused: str


async def accusations(journal: Journal, chain: Chain, owner: Address, limit: int) -> list[Accusation]:
    """The latest that this account has brought, the latest first.  Raises TransactionFailed."""
    return [
        Accusation(operation.evidence, intent.created, intent.state, intent.last_error)
        for intent, operation in await _asked(journal, _account_of(chain, owner), "slash", limit)
        if isinstance(operation, Slash)
    ]


@dataclass(frozen=True, slots=True)
class Sending:
    """Money that an account has sent to another, and whether it is there; `since` in seconds.

    `refused` says why the ledger has not taken it, or not yet.
    """

    transfer: Transfer
    since: float
    state: IntentState
    refused: str


async def sendings(journal: Journal, chain: Chain, owner: Address, limit: int) -> list[Sending]:
    """The latest of this account, the latest first.  Raises TransactionFailed."""
    return [
        Sending(operation, intent.created, intent.state, intent.last_error)
        for intent, operation in await _asked(journal, _account_of(chain, owner), "transfer", limit)
        if isinstance(operation, Transfer)
    ]


async def _asked(journal: Journal, account: str, kind: str, limit: int) -> list[tuple[Intent, Operation]]:
    """The latest operations of an account, of one kind and few that merely speak of it."""
    found = await journal.read(intents_with, KIND, account, canonical_json(kind), limit)
    return [(intent, unsigned_from_json(parse_canonical_json(intent.body))) for intent in found]


def _account_of(chain: Chain, owner: Address) -> str:
    return f"{chain.id} {owner.hex()}"
