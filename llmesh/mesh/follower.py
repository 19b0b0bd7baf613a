"""Follower: a member's ledger, its own copy of the log, kept level with those of other members.

Every entry is checked before it is kept, whoever gave it.  Operations go to the issuer, the one node
whose refusals count; it proves who it is.  Two entries by the issuer for one place prove that it
wrote two histories: then nothing is followed any more and the alarm stays on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, LedgerChannel
from llmesh.core.ids import PeerId
from llmesh.core.ledgerlog import SignedEntry, forked
from llmesh.core.operations import SignedOperation
from llmesh.core.swarm import check_introduction
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelId
from llmesh.errors import (
    Conflict,
    MeshError,
    NetworkError,
    NodeUnreachable,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.ledger.log import LogLedger
from llmesh.net.host import PeerAddress
from llmesh.net.ledger import ask_genesis, follow, submit
from llmesh.net.session import Session
from llmesh.net.sessions import Sessions

__all__ = ["Follower", "Members"]

log = logging.getLogger(__name__)

LINES = 3
"""Members that are followed at a time, so that none of them can hide what is new."""
FOLLOWING = 120.0
"""Seconds after which a line looks whether the issuer is back, unless it is the issuer's."""
SUBMITTING = 15.0
"""Seconds for an operation to be entered and to come back in the log."""
INTRODUCING = 5.0
FIRST, LONGEST = 0.5, 15.0
"""Seconds between tries while nobody can be followed."""
SHUNNED = 600.0
"""Seconds for which a peer is not asked that gave what is wrong, or is of another swarm."""


@dataclass(frozen=True, slots=True)
class Members:
    """Who may have the log: `known` are contacts that the invite and the directory give now.

    `sessions` is first called when the follower runs or submits.  `clock` is seconds since 1970, for the
    issuer's binding.
    """

    sessions: Callable[[], Sessions]
    known: Callable[[], Sequence[PeerAddress]]
    clock: Callable[[], float]
    rng: Random


@dataclass(slots=True)
class _Lines:
    """Who is being followed, who is not to be asked for now, and how a line is woken."""

    busy: set[PeerId] = field(default_factory=set)
    shunned: dict[PeerId, float] = field(default_factory=dict)
    poked: trio.Event = field(default_factory=trio.Event)


class Follower:
    """The ledger `copy` of a swarm that another node issues; `run` keeps it level."""

    def __init__(self, copy: LogLedger, members: Members) -> None:
        self.alarm = ""
        self._copy = copy
        self._members = members
        self._lines = _Lines()
        self._issuer: PeerId | None = None
        self._taking = trio.Lock()
        self._forked = trio.Event()

    @property
    def chain(self) -> Chain:
        """What signatures count on."""
        return self._copy.chain

    @property
    def min_stake(self) -> Amount:
        """What a provider bonds at least."""
        return self._copy.min_stake

    @property
    def height(self) -> int:
        """How many entries this node has seen."""
        return self._copy.height

    @property
    def followed(self) -> int:
        """How many members give the log now."""
        return len(self._lines.busy)

    async def account(self, owner: Address) -> Account:
        """What an address has."""
        return await self._copy.account(owner)

    async def channel(self, id: ChannelId) -> LedgerChannel | None:
        """A channel's deposit."""
        return await self._copy.channel(id)

    async def after(self, height: int) -> int:
        """Wait until there are more entries than `height`; how many there are."""
        return await self._copy.after(height)

    async def submit(self, signed: SignedOperation) -> None:
        """Have the issuer enter an operation and wait until this copy shows it; see `Ledger.submit`.

        Raises NodeUnreachable where the issuer cannot be reached, and TransactionFailed when all this
        took longer than 15 s or the issuer has written two histories.
        """
        if await self._copy.has(signed):
            return
        with trio.move_on_after(SUBMITTING):
            if self.alarm:
                raise TransactionFailed(self.alarm)
            sequence = await self._enter(signed)
            self._poke()
            await self._copy.after(sequence - 1)
            if await self._copy.has(signed):
                return
            raise TransactionFailed("The issuer says that it entered what the log does not have.")
        raise TransactionFailed(f"The operation did not come back from the issuer in {SUBMITTING:.0f} s.")

    async def catch_up(self) -> None:
        """Wait until this copy is as long as that of some member now.  Raises NodeUnreachable."""
        for contact in self._contacts():
            try:
                with trio.fail_after(INTRODUCING):
                    session = await self._members.sessions().to(contact.peer_id, contact.addresses)
                    said = await ask_genesis(session, self._copy.genesis.hash)
                    await self._copy.after(said.height - 1)
                    return
            except (MeshError, trio.TooSlowError) as error:
                log.debug("%s does not tell how long its log is: %s", contact.peer_id, error)
        raise NodeUnreachable("No member of this swarm can be reached.")

    async def run(self) -> None:
        """Follow members until cancelled, or until a fork is found."""
        async with trio.open_nursery() as nursery:
            for _ in range(LINES):
                nursery.start_soon(self._keep_line)
            await self._forked.wait()
            nursery.cancel_scope.cancel()

    async def _enter(self, signed: SignedOperation) -> int:
        session = await self._to_issuer()
        try:
            return await submit(session, self._copy.genesis.hash, signed)
        except ValidationFailed as error:
            if error.remote:
                raise
            raise NetworkError(error.message, peer_id=session.peer_id) from error  # nonsense is no refusal
        except MeshError:
            self._issuer = None
            raise

    async def _to_issuer(self) -> Session:
        """A session with the node that has proved to be the issuer.  Raises NodeUnreachable."""
        for contact in self._contacts():
            try:
                with trio.fail_after(INTRODUCING):
                    session = await self._members.sessions().to(contact.peer_id, contact.addresses)
                    if await self._is_issuer(session):
                        return session
            except (MeshError, trio.TooSlowError) as error:
                log.debug("%s is not known as the issuer: %s", contact.peer_id, error)
        raise NodeUnreachable("The issuer of this swarm cannot be reached; it may be away.")

    async def _is_issuer(self, session: Session) -> bool:
        swarm, peer = self._copy.genesis.hash, session.peer_id
        if self._issuer != peer:
            said = await ask_genesis(session, swarm)
            if check_introduction(said, swarm, peer, self._members.clock()):
                self._issuer = peer
        return self._issuer == peer

    def _contacts(self) -> list[PeerAddress]:
        """The issuer first, then who is known, then whoever is connected; without the shunned."""
        now = trio.current_time()
        self._lines.shunned = {peer: until for peer, until in self._lines.shunned.items() if until > now}
        known = {contact.peer_id: contact for contact in self._members.known()}
        live = [session.peer_id for session in self._members.sessions().live()]
        self._members.rng.shuffle(live)
        for peer in live:
            known.setdefault(peer, PeerAddress(peer, ()))
        found = [contact for peer, contact in known.items() if peer not in self._lines.shunned]
        return sorted(found, key=lambda contact: contact.peer_id != self._issuer)

    async def _keep_line(self) -> None:
        """Follow one member after the other."""
        pause = FIRST
        while True:
            contact = next((c for c in self._contacts() if c.peer_id not in self._lines.busy), None)
            if contact is not None and await self._follow_for_now(contact):
                pause = FIRST
            poked = self._lines.poked
            with trio.move_on_after(pause):
                await poked.wait()
            pause = min(2 * pause, LONGEST)

    async def _follow_for_now(self, contact: PeerAddress) -> bool:
        """Whether it went well, until another's turn had come."""
        peer = contact.peer_id
        self._lines.busy.add(peer)
        try:
            with trio.fail_after(INTRODUCING):
                session = await self._members.sessions().to(peer, contact.addresses)
                issuer = await self._is_issuer(session)
            with trio.move_on_after(math.inf if issuer else FOLLOWING) as scope:
                await self._follow(session)
            return scope.cancelled_caught
        except (MeshError, trio.TooSlowError) as error:
            self._failed(peer, error)
            return False
        finally:
            self._lines.busy.discard(peer)

    def _failed(self, peer: PeerId, error: Exception) -> None:
        log.debug("the log of %s: %s", peer, error)
        if isinstance(error, ValidationFailed):
            self._lines.shunned[peer] = trio.current_time() + SHUNNED
        elif isinstance(error, Conflict) and peer == self._issuer:
            log.error("The issuer has lost a part of its log, which this node still has: %s", error.message)

    async def _follow(self, session: Session) -> None:
        """From the last entry that is here on, so that a peer with another one shows it."""
        last = max(0, self._copy.height - 1)
        async with follow(session, self._copy.genesis.hash, last) as entries:
            async for signed in entries:
                await self._take(signed, session.peer_id)

    async def _take(self, signed: SignedEntry, peer: PeerId) -> None:
        async with self._taking:
            sequence = signed.entry.sequence
            if sequence < 1:
                raise ValidationFailed("The entries of a log count from 1.", peer_id=peer)
            if sequence > self._copy.height:
                await self._copy.take(signed)
                return
            [own] = await self._copy.entries(sequence - 1, 1)
            if forked(own, signed, self.chain):
                self._sound(sequence, peer)

    def _sound(self, sequence: int, peer: PeerId) -> None:
        self.alarm = (
            f"The issuer of this swarm has signed two different entries {sequence} of its log (the other"
            f" one came from {peer}). Its money can no longer be relied on; ask the others of the swarm."
        )
        log.error(self.alarm)
        self._forked.set()

    def _poke(self) -> None:
        self._lines.poked.set()
        self._lines.poked = trio.Event()
