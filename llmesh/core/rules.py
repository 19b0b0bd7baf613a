"""The ledger's rules: what a signed operation does to the books, or why it is refused.

Pure: `apply` reads through a View and gives the cells that change.  The rules are those of the
contracts that would keep the same books on an EVM chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from llmesh import crypto
from llmesh.core import operations as ops
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.books import Account, Changes, LedgerChannel, View
from llmesh.core.channel import NOTHING, Deposit
from llmesh.core.evidence import case_of, convict
from llmesh.core.invite import SignedCredit, check_credit
from llmesh.core.operations import SignedOperation, check_operation
from llmesh.core.voucher import ChannelId, channel_id, check_voucher
from llmesh.errors import Conflict, InsufficientBalance, InsufficientStake, Unauthorized, ValidationFailed

__all__ = ["MAX_DELAY", "MIN_DELAY", "apply", "credit_mark"]

MIN_DELAY, MAX_DELAY = 900, 30 * 86_400
"""Seconds between announcing a withdrawal from a channel and making it, x402's bounds."""


def apply(view: View, signed: SignedOperation, at: int) -> Changes:
    """What an operation does to the books at `at`, in the issuer's seconds since 1970.

    Raises, changing nothing: ValidationFailed for what is forged or makes no sense, Unauthorized for an
    actor that may not, Conflict for a nonce out of turn, a thing done already or too early,
    InsufficientBalance or InsufficientStake where there is too little.
    """
    check_operation(signed, view.genesis.chain)
    draft = _Draft(view, signed.actor, at)
    due = draft.account(signed.actor).nonce + 1
    if signed.nonce != due:
        raise Conflict(f"Operation {signed.nonce} of this account is out of turn; {due} is due.")
    draft.set(signed.actor, nonce=due)
    _RULES[type(signed.operation)](draft, signed.operation)
    return Changes(draft.accounts, draft.channels, frozenset(draft.marks), draft.minted)


def credit_mark(signed: SignedCredit) -> bytes:
    """32 bytes that the books keep of a credit once it is taken."""
    return crypto.keccak256(b"llmesh credit" + signed.credit.id)


@dataclass(slots=True)
class _Draft:
    """The books with what one operation has changed so far; dropped where it is refused."""

    view: View
    actor: Address
    at: int
    accounts: dict[Address, Account] = field(default_factory=dict)
    channels: dict[ChannelId, LedgerChannel] = field(default_factory=dict)
    marks: set[bytes] = field(default_factory=set)
    minted: Amount = NOTHING

    def __post_init__(self) -> None:
        self.minted = self.view.minted

    def account(self, owner: Address) -> Account:
        return self.accounts.get(owner) or self.view.account(owner)

    def set(self, owner: Address, **cells: Any) -> None:
        self.accounts[owner] = replace(self.account(owner), **cells)

    def channel(self, channel: ChannelId) -> LedgerChannel:
        found = self.channels.get(channel) or self.view.channel(channel)
        if found is None:
            raise ValidationFailed(f"The ledger has no channel {channel.hex()}.")
        return found

    def debit(self, owner: Address, amount: Amount) -> None:
        balance = self.account(owner).balance
        if amount > balance:
            raise InsufficientBalance(f"The account has {balance} MESH, not {amount}.")
        self.set(owner, balance=balance - amount)

    def credit(self, owner: Address, amount: Amount) -> None:
        self.set(owner, balance=self.account(owner).balance + amount)

    def use(self, mark: bytes, what: str) -> None:
        if self.view.used(mark):
            raise Conflict(f"{what} was used before.")
        self.marks.add(mark)


def _some(amount: Amount) -> Amount:
    if not amount:
        raise ValidationFailed("The amount of an operation must be more than nothing.")
    return amount


def _only(draft: _Draft, *allowed: Address) -> None:
    if draft.actor not in allowed:
        raise Unauthorized("This account may not do that.")


def _mint(draft: _Draft, op: ops.Mint) -> None:
    _only(draft, draft.view.genesis.genesis.issuer)
    draft.minted += _some(op.amount)
    draft.credit(op.to, op.amount)


def _redeem(draft: _Draft, op: ops.Redeem) -> None:
    check_credit(op.credit, draft.view.genesis.chain)
    credit = op.credit.credit
    if credit.expires_at <= draft.at:
        raise Conflict("The credit of this invite has expired.")
    draft.use(credit_mark(op.credit), "The credit of this invite")
    draft.debit(draft.view.genesis.genesis.issuer, _some(credit.amount))
    draft.credit(draft.actor, credit.amount)


def _transfer(draft: _Draft, op: ops.Transfer) -> None:
    draft.debit(draft.actor, _some(op.amount))
    draft.credit(op.to, op.amount)


def _deposit(draft: _Draft, op: ops.Deposit) -> None:
    config, chain = op.config, draft.view.genesis.chain
    _only(draft, config.payer)
    if config.token != chain.contract or not MIN_DELAY <= config.withdraw_delay <= MAX_DELAY:
        raise ValidationFailed(
            f"A channel is of this ledger's token and its delay is {MIN_DELAY} to {MAX_DELAY} seconds."
        )
    draft.debit(draft.actor, _some(op.amount))
    mark = channel_id(config, chain)
    cell = draft.view.channel(mark) or LedgerChannel(config, Deposit())
    draft.channels[mark] = _moved(cell, balance=cell.deposit.balance + op.amount)


def _moved(cell: LedgerChannel, **amounts: Amount) -> LedgerChannel:
    return replace(cell, deposit=replace(cell.deposit, **amounts))


def _claim(draft: _Draft, op: ops.Claim) -> None:
    if not op.items:
        raise ValidationFailed("A claim names at least one channel.")
    for item in op.items:
        _claim_one(draft, item)


def _claim_one(draft: _Draft, item: ops.ClaimItem) -> None:
    mark = item.voucher.voucher.channel
    cell = draft.channel(mark)
    config, deposit = cell.config, cell.deposit
    _only(draft, config.receiver, config.receiver_authorizer)
    check_voucher(item.voucher, config, draft.view.genesis.chain)
    if item.total > item.voucher.ceiling or item.total > deposit.balance:
        raise InsufficientBalance(f"Voucher or deposit of channel {mark.hex()} do not cover the claim.")
    if item.total <= deposit.claimed:
        raise Conflict(f"Channel {mark.hex()} has {deposit.claimed} MESH claimed already.")
    earned = item.total - deposit.claimed
    draft.channels[mark] = _moved(cell, claimed=item.total)
    draft.set(config.receiver, claimed=draft.account(config.receiver).claimed + earned)


def _settle(draft: _Draft, op: ops.Settle) -> None:
    account = draft.account(op.receiver)
    due = account.claimed - account.settled
    if not due:
        raise Conflict("All that was claimed is paid out already.")
    draft.set(op.receiver, settled=account.claimed, balance=account.balance + due)


def _refund(draft: _Draft, op: ops.Refund) -> None:
    cell = draft.channel(op.channel)
    _only(draft, cell.config.receiver, cell.config.receiver_authorizer)
    _give_back(draft, op.channel, _some(op.amount))


def _give_back(draft: _Draft, mark: ChannelId, most: Amount) -> None:
    """As much as is asked for and not claimed, to the payer; what was being withdrawn shrinks with it."""
    cell = draft.channel(mark)
    deposit = cell.deposit
    amount = min(most, deposit.balance - deposit.claimed)
    left = deposit.balance - amount
    withdrawing = min(deposit.withdrawing, left - deposit.claimed)
    draft.channels[mark] = _moved(cell, balance=left, withdrawing=withdrawing)
    draft.credit(cell.config.payer, amount)


def _initiate_withdraw(draft: _Draft, op: ops.InitiateWithdraw) -> None:
    cell = draft.channel(op.channel)
    _only(draft, cell.config.payer, cell.config.authorizer)
    if cell.deposit.withdrawing:
        raise Conflict("A withdrawal from this channel is under way.")
    if _some(op.amount) > cell.deposit.balance - cell.deposit.claimed:
        raise InsufficientBalance("The channel does not have that much left.")
    free_at = draft.at + cell.config.withdraw_delay
    draft.channels[op.channel] = replace(_moved(cell, withdrawing=op.amount), free_at=free_at)


def _finalize_withdraw(draft: _Draft, op: ops.FinalizeWithdraw) -> None:
    cell = draft.channel(op.channel)
    _only(draft, cell.config.payer, cell.config.authorizer)
    if not cell.deposit.withdrawing:
        raise Conflict("No withdrawal from this channel is under way.")
    _too_early(draft, cell.free_at)
    draft.channels[op.channel] = _moved(cell, withdrawing=NOTHING)
    _give_back(draft, op.channel, cell.deposit.withdrawing)


def _too_early(draft: _Draft, free_at: int) -> None:
    if draft.at < free_at:
        wait = free_at - draft.at
        raise Conflict(f"That is possible in {timedelta(seconds=wait)} (h:m:s).", retry_after=wait)


def _bond(draft: _Draft, op: ops.Bond) -> None:
    draft.debit(draft.actor, _some(op.amount))
    draft.set(draft.actor, stake=draft.account(draft.actor).stake + op.amount)


def _start_unbond(draft: _Draft, op: ops.StartUnbond) -> None:
    """More on top of what is on its way starts the wait anew for all of it."""
    account = draft.account(draft.actor)
    if _some(op.amount) > account.stake:
        raise InsufficientStake(
            f"The account has {account.stake} MESH bonded, not {op.amount}.",
            next_step="Take out at most what is bonded.",
        )
    draft.set(
        draft.actor,
        stake=account.stake - op.amount,
        unbonding=account.unbonding + op.amount,
        free_at=draft.at + draft.view.genesis.genesis.unbonding,
    )


def _withdraw(draft: _Draft, _: ops.Withdraw) -> None:
    account = draft.account(draft.actor)
    if not account.unbonding:
        raise Conflict("No stake is on its way out.")
    _too_early(draft, account.free_at)
    draft.set(draft.actor, balance=account.balance + account.unbonding, unbonding=NOTHING)


def _slash(draft: _Draft, op: ops.Slash) -> None:
    """All that is bonded, unbonding too: half to who proved it, the rest to the issuer."""
    guilty = convict(op.evidence, draft.view.genesis.chain)
    draft.use(case_of(op.evidence), "This evidence")
    account = draft.account(guilty)
    taken = account.stake + account.unbonding
    if not taken:
        raise InsufficientStake("The provider has nothing bonded.")
    draft.set(guilty, stake=NOTHING, unbonding=NOTHING)
    reward = Amount(taken.micro // 2)
    draft.credit(draft.actor, reward)
    draft.credit(draft.view.genesis.genesis.issuer, taken - reward)


_RULES: dict[type[ops.Operation], Callable[[_Draft, Any], None]] = {
    ops.Mint: _mint,
    ops.Redeem: _redeem,
    ops.Transfer: _transfer,
    ops.Deposit: _deposit,
    ops.Claim: _claim,
    ops.Settle: _settle,
    ops.Refund: _refund,
    ops.InitiateWithdraw: _initiate_withdraw,
    ops.FinalizeWithdraw: _finalize_withdraw,
    ops.Bond: _bond,
    ops.StartUnbond: _start_unbond,
    ops.Withdraw: _withdraw,
    ops.Slash: _slash,
}
