"""The swarm that this node belongs to: its account, its ledger, its stake there, and invites to it.

A node that was not invited anywhere is a swarm of its own: it issues its own money and has all of it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh import crypto
from llmesh.core.address import NOBODY, Address, address_text
from llmesh.core.amount import Amount
from llmesh.core.genesis import Genesis, SignedGenesis, sign_genesis
from llmesh.core.invite import MAX_ADDRESSES, Credit, Invite, SignedCredit, invite_text, sign_credit
from llmesh.core.operations import Bond, Redeem, StartUnbond, Transfer, Withdraw
from llmesh.core.rules import credit_mark
from llmesh.core.signer import Signer
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    InsufficientStake,
    MeshError,
    NodeUnreachable,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.gateway.status import SwarmView
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.ledger.local import kept_genesis, open_local_ledger
from llmesh.ledger.log import LogLedger
from llmesh.mesh.announcer import Announcer
from llmesh.mesh.follower import Follower
from llmesh.mesh.teller import Teller
from llmesh.node.faults import StartRefused
from llmesh.node.home import ACCOUNT, LEDGER, Home
from llmesh.node.joining import join

__all__ = ["LIFETIME", "Swarm", "account_signer", "announce_stake", "open_log", "take_part"]

_log = logging.getLogger(__name__)

ALLOCATION = Amount.parse(1_000_000)
"""What a lone node has at first."""
UNBONDING = 7 * 86_400
"""Seconds until a stake is free again."""
AGAIN = 30.0
"""Seconds between tries while the ledger is out of reach."""
LIFETIME = 7 * 86_400.0
"""Seconds until an invite expires, if nothing else is said."""


def account_signer(home: Home) -> Signer:
    """The account of this node.  Raises StartRefused for bytes that are no key."""
    try:
        return Signer(Address(crypto.address_of(home.account_seed)), crypto.signer(home.account_seed))
    except ValueError:
        raise StartRefused(f"The key {home.folder / ACCOUNT} is no key: restore it from a copy.") from None


@asynccontextmanager
async def open_log(
    home: Home, signer: Signer, min_stake: Amount, invite: Invite | None
) -> AsyncGenerator[LogLedger]:
    """The log of this node's swarm: the invite's, or at first one of its own, with this `min_stake`.

    Raises StartRefused for a file that cannot be used and for an invite that does not lead anywhere.
    """
    path = home.folder / LEDGER
    try:
        if invite is not None:
            await join(home, invite, signer.address)
        genesis = kept_genesis(path) or _lone_genesis(signer, min_stake)
    except MeshError as error:
        raise StartRefused(f"{error.message} {error.next_step}") from error
    sign = signer.sign if genesis.genesis.issuer == signer.address else None
    async with open_local_ledger(path, genesis, sign) as log:
        yield log


@dataclass(frozen=True, slots=True)
class Swarm:
    """A node's part in its swarm: `log` is its copy, or the ledger itself where it is the issuer."""

    signer: Signer
    log: LogLedger
    ledger: Ledger
    teller: Teller

    async def unbond(self, amount: Amount) -> None:
        """Stop a part of the stake from counting; `withdraw_stake` takes it out after the unbonding time.

        Raises InsufficientStake for more than is bonded, TransactionFailed as `Teller.perform` does.
        """
        bonded = (await self.ledger.account(self.signer.address)).stake
        if amount > bonded:
            raise InsufficientStake(
                f"This node has {bonded} MESH bonded, not {amount}.",
                next_step="Take out at most what is bonded.",
            )
        await self.teller.perform(StartUnbond(amount))

    async def withdraw_stake(self) -> None:
        """Put what was unbonded back into the balance.  Raises Conflict before its time, or as `unbond`."""
        if not (await self.ledger.account(self.signer.address)).unbonding:
            raise Conflict("No stake is on its way out.", next_step="First `llmesh unbond` some of it.")
        try:
            await self.teller.perform(Withdraw())
        except Conflict as error:
            step = "Ask again then; the time counts while the issuer of the swarm runs."
            raise Conflict(error.message, retry_after=error.retry_after, next_step=step) from error

    async def send(self, to: Address, amount: Amount) -> None:
        """Move money from the balance to another account of this ledger; on return it is there.

        It is sent once, over restarts too; the same that still waits is not sent a second time.  Raises
        ValidationFailed for nothing, or where it would go nowhere, InsufficientBalance, TransactionFailed
        as `Teller.perform` does: then it goes on by itself.
        """
        if not amount:
            raise ValidationFailed("The amount to send must be more than nothing.")
        if to in (NOBODY, self.signer.address):
            whose = "nobody's" if to == NOBODY else "this node's own"
            raise ValidationFailed(f"The account {address_text(to)} is {whose}.")
        balance = (await self.ledger.account(self.signer.address)).balance
        if amount > balance:
            raise InsufficientBalance(f"This node has {balance} MESH free to use, not {amount}.")
        await self.teller.perform(Transfer(to, amount))

    def view(self, balance: Amount, accused: int) -> SwarmView:
        """What `status` shows of it: `accused` providers were caught cheating."""
        ledger = self.ledger
        followed, alarm = (ledger.followed, ledger.alarm) if isinstance(ledger, Follower) else (0, "")
        return SwarmView(
            self.log.genesis.hash.hex(),
            address_text(self.signer.address),
            self.log.issuer is not None,
            balance,
            self.log.height,
            followed,
            alarm,
            accused,
        )

    async def invite(self, addresses: Sequence[str], credit: Amount, lifetime: float) -> str:
        """A line that lets a machine join, through these addresses, for `lifetime` seconds.

        Raises ValidationFailed for a credit where this node is not the issuer, InsufficientBalance where it
        has less than the credit, Conflict where it has no address.
        """
        if not addresses:
            raise Conflict(
                "This node has no address that another machine could dial; give it one by --listen."
            )
        signed = await self._credit(credit, lifetime) if credit else None
        chain, until = self.log.chain, int(time.time() + lifetime)
        places = tuple(addresses[:MAX_ADDRESSES])
        return invite_text(Invite(places, self.log.genesis.hash, chain.contract, until, signed))

    async def _credit(self, amount: Amount, lifetime: float) -> SignedCredit:
        issuer = self.log.issuer
        if issuer is None:
            raise ValidationFailed(
                "Only the issuer of a swarm gives credit, and this node is a member: make the invite on the"
                " issuer, or without a credit here."
            )
        balance = (await self.log.account(self.signer.address)).balance
        if amount > balance:
            raise InsufficientBalance(
                f"The issuer has {balance} MESH, less than a credit of {amount}.",
                next_step="Give a smaller credit.",
            )
        # The ledger's time lags behind the clock where its issuer has been away.
        credit = Credit(secrets.token_bytes(16), amount, issuer.now() + int(lifetime))
        return sign_credit(credit, self.log.chain, issuer.sign)


async def take_part(
    swarm: Swarm, invite: Invite | None, stake: Amount, *, task_status: TaskStatus[None]
) -> None:
    """Take the credit of the invite and bring the stake up to what was asked for.

    It counts as started after the first try, and goes on trying while the ledger is out of reach.
    Raises StartRefused where the balance does not cover the stake.
    """
    waits = False
    while not await _takes_part(swarm, invite, stake):
        if not waits:
            task_status.started()
        waits = True
        await trio.sleep(AGAIN)
    if not waits:
        task_status.started()


async def announce_stake(swarm: Swarm, announcer: Announcer, *, task_status: TaskStatus[None]) -> None:
    """Keep what is announced as staked at what the ledger says, from the start on."""
    height = -1
    while True:
        height = await swarm.ledger.after(height)
        await _restake(announcer, (await swarm.ledger.account(swarm.signer.address)).stake)
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED


async def _restake(announcer: Announcer, stake: Amount) -> None:
    if stake == announcer.stake:
        return
    try:
        announcer.restake(stake)
    except InsufficientStake as error:
        _log.error("This node offers nothing any more: %s", error.message)
        await announcer.withdraw()
        announcer.restake(stake)


async def _takes_part(swarm: Swarm, invite: Invite | None, stake: Amount) -> bool:
    """Whether it is all done."""
    try:
        if isinstance(swarm.ledger, Follower):
            await swarm.ledger.catch_up()
        await swarm.teller.catch_up()
        if invite is not None and invite.credit is not None:
            await _redeem(swarm, invite.credit)
        await _bond(swarm, stake)
    except (NodeUnreachable, TransactionFailed) as error:
        _log.warning("The swarm's ledger is out of reach; this is tried again: %s", error.message)
        return False
    return True


async def _redeem(swarm: Swarm, credit: SignedCredit) -> None:
    if await swarm.log.used(credit_mark(credit)):
        if not (await swarm.ledger.account(swarm.signer.address)).nonce:  # it has never done anything
            _log.error("The credit of the invite was taken by another node; ask for a new line.")
        return
    try:
        await swarm.teller.perform(Redeem(credit))
    except REFUSALS as error:
        _log.error("The credit of the invite was not given: %s", error.message)


async def _bond(swarm: Swarm, stake: Amount) -> None:
    bonded = (await swarm.ledger.account(swarm.signer.address)).stake
    if stake <= bonded:
        return
    try:
        await swarm.teller.perform(Bond(stake - bonded))
    except InsufficientBalance as error:
        raise StartRefused(
            f"The stake of {stake} MESH cannot be bonded. {error.message} Start with a lower --stake, or get"
            " more first: `llmesh invite --credit MESH` on the issuer of the swarm prints a line for --join."
        ) from None


def _lone_genesis(signer: Signer, min_stake: Amount) -> SignedGenesis:
    owner = signer.address
    genesis = Genesis(owner, ((owner, ALLOCATION),), min_stake, UNBONDING, int(time.time()))
    return sign_genesis(genesis, signer.sign)
