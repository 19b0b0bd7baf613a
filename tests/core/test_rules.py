"""Each operation of the ledger: what it does, who may, and what is refused without a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmesh import crypto
from llmesh.core import operations as ops
from llmesh.core.address import Address
from llmesh.core.books import EMPTY
from llmesh.core.evidence import Equivocation
from llmesh.core.genesis import Genesis
from llmesh.core.ids import AttemptId, RequestId
from llmesh.core.invite import Credit, SignedCredit, sign_credit
from llmesh.core.operations import Operation, sign_operation
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, SignedReceipt, sign_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, Voucher, channel_id, sign_voucher
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    InsufficientStake,
    MeshError,
    Unauthorized,
    ValidationFailed,
)

from .banking import (
    ALICE,
    BOB,
    CAROL,
    CHAIN,
    DELAY,
    GENESIS,
    ISSUER,
    SIGN,
    START,
    UNBONDING,
    Bank,
    claim_of,
    config,
)
from .paying import WORK, micro

CONFIG = config(ALICE, BOB)
CHANNEL = channel_id(CONFIG, CHAIN)
CREDIT = sign_credit(Credit(b"c" * 16, micro(50), START + 100), CHAIN, SIGN[ISSUER])


@pytest.fixture
def bank() -> Bank:
    bank = Bank()
    bank.do(ALICE, ops.Deposit(CONFIG, micro(400)))
    return bank


def refused(bank: Bank, error: type[MeshError], actor: Address, operation: Operation) -> MeshError:
    """The operation is refused with this error, and nothing has changed."""
    before = dict(bank.books.accounts), dict(bank.books.channels), bank.books.minted, bank.head
    with pytest.raises(error) as caught:
        bank.do(actor, operation)
    assert before == (bank.books.accounts, bank.books.channels, bank.books.minted, bank.head)
    return caught.value


def test_the_issuer_mints_and_nobody_else(bank: Bank) -> None:
    bank.do(ISSUER, ops.Mint(BOB, micro(7)))
    assert bank.balance(BOB) == 7
    assert bank.books.minted == bank.books.held == micro(1_001_007)
    refused(bank, Unauthorized, ALICE, ops.Mint(ALICE, micro(7)))
    refused(bank, ValidationFailed, ISSUER, ops.Mint(BOB, micro((1 << 128) - 1)))


def test_transfers(bank: Bank) -> None:
    bank.do(ALICE, ops.Transfer(BOB, micro(100)))
    assert (bank.balance(ALICE), bank.balance(BOB)) == (500, 100)
    bank.do(ALICE, ops.Transfer(ALICE, micro(500)))
    assert bank.balance(ALICE) == 500
    refused(bank, InsufficientBalance, ALICE, ops.Transfer(BOB, micro(501)))
    refused(bank, InsufficientBalance, CAROL, ops.Transfer(BOB, micro(1)))


@pytest.mark.parametrize(
    "operation",
    [
        ops.Transfer(BOB, micro(0)),
        ops.Deposit(CONFIG, micro(0)),
        ops.Bond(micro(0)),
        ops.StartUnbond(micro(0)),
        ops.InitiateWithdraw(CHANNEL, micro(0)),
    ],
)
def test_nothing_is_no_amount(bank: Bank, operation: Operation) -> None:
    refused(bank, ValidationFailed, ALICE, operation)


def test_an_invites_credit_is_taken_once(bank: Bank) -> None:
    bank.do(CAROL, ops.Redeem(CREDIT))
    assert bank.balance(CAROL) == 50
    assert bank.balance(ISSUER) == 999_950
    refused(bank, Conflict, CAROL, ops.Redeem(CREDIT))
    refused(bank, Conflict, BOB, ops.Redeem(CREDIT))


def test_credits_that_are_late_forged_or_raised_are_refused(bank: Bank) -> None:
    refused(bank, ValidationFailed, CAROL, ops.Redeem(sign_credit(CREDIT.credit, CHAIN, SIGN[ALICE])))
    raised = SignedCredit(replace(CREDIT.credit, amount=micro(51)), CREDIT.signature)
    refused(bank, ValidationFailed, CAROL, ops.Redeem(raised))
    bank.now = START + 100
    refused(bank, Conflict, CAROL, ops.Redeem(CREDIT))


def test_a_credit_beyond_the_issuers_balance_is_refused_and_not_spent(bank: Bank) -> None:
    big = sign_credit(Credit(b"b" * 16, micro(1_000_001), START + 100), CHAIN, SIGN[ISSUER])
    refused(bank, InsufficientBalance, CAROL, ops.Redeem(big))
    bank.do(ISSUER, ops.Mint(ISSUER, micro(1)))
    bank.do(CAROL, ops.Redeem(big))
    assert bank.balance(CAROL) == 1_000_001


# --- channels -------------------------------------------------------------------------------------


def test_a_channel_pays_its_receiver_by_claim_and_settle(bank: Bank) -> None:
    bank.do(BOB, ops.Claim((claim_of(CONFIG, 300, 250),)))
    assert bank.balance(BOB) == 0
    bank.do(CAROL, ops.Settle(BOB))
    assert bank.balance(BOB) == 250
    bank.do(BOB, ops.Claim((claim_of(CONFIG, 300, 300),)))
    bank.do(BOB, ops.Settle(BOB))
    account = bank.books.account(BOB)
    assert (account.balance, account.claimed, account.settled) == (micro(300), micro(300), micro(300))
    refused(bank, Conflict, BOB, ops.Settle(BOB))


def test_a_deposit_grows(bank: Bank) -> None:
    bank.do(ALICE, ops.Deposit(CONFIG, micro(100)))
    cell = bank.books.channel(CHANNEL)
    assert cell is not None
    assert cell.deposit.balance == micro(500)
    refused(bank, InsufficientBalance, ALICE, ops.Deposit(CONFIG, micro(501)))
    refused(bank, Unauthorized, BOB, ops.Deposit(CONFIG, micro(1)))


@pytest.mark.parametrize(
    "odd",
    [
        config(ALICE, BOB, delay=899),
        config(ALICE, BOB, delay=30 * 86_400 + 1),
        replace(CONFIG, token=CAROL),
    ],
)
def test_channels_of_other_tokens_or_odd_delays_are_refused(bank: Bank, odd: ChannelConfig) -> None:
    refused(bank, ValidationFailed, ALICE, ops.Deposit(odd, micro(1)))


def test_claims_are_refused_whole(bank: Bank) -> None:
    other = config(ALICE, BOB, salt=1)
    bank.do(ALICE, ops.Deposit(other, micro(10)))
    good, bad = claim_of(CONFIG, 300, 250), claim_of(other, 11, 11)
    refused(bank, InsufficientBalance, BOB, ops.Claim((good, bad)))
    bank.do(BOB, ops.Claim((good, claim_of(other, 10, 10))))
    assert bank.books.account(BOB).claimed == micro(260)
    refused(bank, Conflict, BOB, ops.Claim((good,)))


def test_one_channel_twice_in_a_claim_counts_once(bank: Bank) -> None:
    item = claim_of(CONFIG, 300, 250)
    refused(bank, Conflict, BOB, ops.Claim((item, item)))


def test_forged_claims_are_refused(bank: Bank) -> None:
    voucher = Voucher(CHANNEL, micro(300))
    forged = [
        sign_voucher(voucher, CHAIN, SIGN[BOB]),
        sign_voucher(voucher, Chain(CHAIN.id + 1, ISSUER), SIGN[ALICE]),
        SignedVoucher(Voucher(CHANNEL, micro(301)), sign_voucher(voucher, CHAIN, SIGN[ALICE]).signature),
        sign_voucher(Voucher(ChannelId(b"x" * 32), micro(300)), CHAIN, SIGN[ALICE]),
    ]
    for one in forged:
        refused(bank, ValidationFailed, BOB, ops.Claim((ops.ClaimItem(one, micro(10)),)))
    refused(bank, Unauthorized, CAROL, ops.Claim((claim_of(CONFIG, 300, 250),)))
    refused(bank, InsufficientBalance, BOB, ops.Claim((claim_of(CONFIG, 249, 250),)))
    refused(bank, ValidationFailed, BOB, ops.Claim(()))


def test_a_withdrawal_waits_and_a_claim_comes_first(bank: Bank) -> None:
    bank.do(ALICE, ops.InitiateWithdraw(CHANNEL, micro(400)))
    refused(bank, Conflict, ALICE, ops.InitiateWithdraw(CHANNEL, micro(1)))
    bank.now += DELAY - 1
    early = refused(bank, Conflict, ALICE, ops.FinalizeWithdraw(CHANNEL))
    assert early.retry_after == 1
    bank.do(BOB, ops.Claim((claim_of(CONFIG, 300, 250),)))
    bank.now += 1
    bank.do(ALICE, ops.FinalizeWithdraw(CHANNEL))
    assert bank.balance(ALICE) == 750
    cell = bank.books.channel(CHANNEL)
    assert cell is not None
    assert (cell.deposit.balance, cell.deposit.withdrawing) == (micro(250), micro(0))
    refused(bank, Conflict, ALICE, ops.FinalizeWithdraw(CHANNEL))
    refused(bank, InsufficientBalance, BOB, ops.Claim((claim_of(CONFIG, 300, 251),)))


def test_only_the_payer_withdraws(bank: Bank) -> None:
    refused(bank, Unauthorized, BOB, ops.InitiateWithdraw(CHANNEL, micro(1)))
    bank.do(ALICE, ops.InitiateWithdraw(CHANNEL, micro(1)))
    refused(bank, Unauthorized, BOB, ops.FinalizeWithdraw(CHANNEL))
    refused(bank, ValidationFailed, ALICE, ops.FinalizeWithdraw(ChannelId(b"x" * 32)))


def test_more_than_there_is_cannot_be_withdrawn(bank: Bank) -> None:
    refused(bank, InsufficientBalance, ALICE, ops.InitiateWithdraw(CHANNEL, micro(401)))


def test_a_refund_is_at_once_and_never_of_what_is_claimed(bank: Bank) -> None:
    bank.do(ALICE, ops.InitiateWithdraw(CHANNEL, micro(400)))
    bank.do(BOB, ops.Claim((claim_of(CONFIG, 300, 250),)))
    refused(bank, Unauthorized, ALICE, ops.Refund(CHANNEL, micro(1)))
    bank.do(BOB, ops.Refund(CHANNEL, micro(999)))
    assert bank.balance(ALICE) == 750
    cell = bank.books.channel(CHANNEL)
    assert cell is not None
    assert (cell.deposit.balance, cell.deposit.withdrawing) == (micro(250), micro(0))


# --- stake ----------------------------------------------------------------------------------------


def test_stake_is_free_again_after_the_unbonding_time(bank: Bank) -> None:
    bank.do(ALICE, ops.Bond(micro(300)))
    refused(bank, InsufficientBalance, ALICE, ops.Bond(micro(301)))
    refused(bank, InsufficientStake, ALICE, ops.StartUnbond(micro(301)))
    refused(bank, Conflict, ALICE, ops.Withdraw())
    bank.do(ALICE, ops.StartUnbond(micro(100)))
    assert bank.books.account(ALICE).stake == micro(200)
    bank.now += UNBONDING - 1
    bank.do(ALICE, ops.StartUnbond(micro(100)))
    bank.now += 1
    assert refused(bank, Conflict, ALICE, ops.Withdraw()).retry_after == UNBONDING - 1
    bank.now += UNBONDING - 1
    bank.do(ALICE, ops.Withdraw())
    assert bank.balance(ALICE) == 500


def receipt(output: bytes, request: str = "ab" * 16) -> SignedReceipt:
    charge = Charge(CHANNEL, 1, micro(1), micro(1))
    work = replace(WORK, output_digest=output * 32)
    of = AttemptId(RequestId(request), 1)
    return sign_receipt(Receipt(ALICE, of, NO_OFFER, work, charge, START), CHAIN, SIGN[ALICE])


def test_who_contradicts_itself_loses_its_stake_once(bank: Bank) -> None:
    bank.do(ALICE, ops.Bond(micro(301)))
    bank.do(ALICE, ops.StartUnbond(micro(100)))
    bank.do(CAROL, ops.Slash(Equivocation(receipt(b"x"), receipt(b"y"))))
    assert (bank.balance(CAROL), bank.balance(ISSUER)) == (150, 1_000_151)
    account = bank.books.account(ALICE)
    assert (account.stake, account.unbonding) == (micro(0), micro(0))
    bank.do(ALICE, ops.Bond(micro(100)))
    refused(bank, Conflict, CAROL, ops.Slash(Equivocation(receipt(b"y"), receipt(b"z"))))
    bank.do(CAROL, ops.Slash(Equivocation(receipt(b"x", "cd" * 16), receipt(b"y", "cd" * 16))))
    assert bank.books.account(ALICE).stake == micro(0)


def test_evidence_that_proves_nothing_is_refused(bank: Bank) -> None:
    refused(bank, InsufficientStake, CAROL, ops.Slash(Equivocation(receipt(b"x"), receipt(b"y"))))
    bank.do(ALICE, ops.Bond(micro(100)))
    refused(bank, ValidationFailed, CAROL, ops.Slash(Equivocation(receipt(b"x"), receipt(b"x"))))


# --- who, when, and how often ---------------------------------------------------------------------


def test_an_operation_counts_once_and_in_its_turn(bank: Bank) -> None:
    signed = bank.signed(ALICE, ops.Transfer(BOB, micro(1)))
    bank.enter(signed)
    with pytest.raises(Conflict, match="out of turn"):
        bank.enter(signed)
    ahead = sign_operation(ALICE, 9, ops.Transfer(BOB, micro(1)), CHAIN, SIGN[ALICE])
    with pytest.raises(Conflict, match="out of turn"):
        bank.enter(ahead)
    assert bank.balance(BOB) == 1


def test_operations_of_others_or_other_ledgers_are_refused(bank: Bank) -> None:
    operation = ops.Transfer(CAROL, micro(1))
    genuine = bank.signed(ALICE, operation)
    forged = [
        sign_operation(ALICE, genuine.nonce, operation, CHAIN, SIGN[CAROL]),
        sign_operation(ALICE, genuine.nonce, operation, Chain(CHAIN.id + 1, ISSUER), SIGN[ALICE]),
        replace(genuine, operation=ops.Transfer(CAROL, micro(2))),
        replace(genuine, operation=ops.Transfer(BOB, micro(1))),
        replace(genuine, operation=ops.Mint(CAROL, micro(1))),
        replace(genuine, nonce=genuine.nonce + 1),
        replace(genuine, actor=BOB),
    ]
    for signed in forged:
        with pytest.raises(ValidationFailed):
            bank.enter(signed)
    bank.enter(genuine)


def test_an_unknown_address_has_nothing() -> None:
    assert Bank().books.account(CAROL) == EMPTY


def test_a_genesis_is_bounded() -> None:
    genesis = GENESIS.genesis
    for make in (
        lambda: replace(genesis, allocations=((ALICE, micro(1)), (ALICE, micro(1)))),
        lambda: replace(genesis, allocations=((ALICE, micro((1 << 128) - 1)), (BOB, micro(1)))),
        lambda: replace(genesis, unbonding=-1),
        lambda: replace(genesis, created_at=1 << 40),
        lambda: Genesis(Address(b""), (), micro(0), 0, 0),
    ):
        with pytest.raises(ValidationFailed):
            make()


def test_addresses_of_tests_are_of_their_keys() -> None:
    assert crypto.recover(b"d" * 32, SIGN[ALICE](b"d" * 32)) == ALICE
