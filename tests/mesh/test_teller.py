"""The teller against a ledger that cannot be reached, loses its answers, or refuses."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.core.operations import SignedOperation
from llmesh.core.signer import Signer
from llmesh.errors import InsufficientBalance, MeshError, NetworkError, NodeUnreachable, TransactionFailed
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.outbox import dead_intents, waiting_intents
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.teller import KIND, Teller, sendings
from tests.core.banking import ALICE, BOB, CHAIN, GENESIS, ISSUER, SIGN
from tests.mesh.journals import QuickJournal

OWNER = PeerId("12D3KooW" + "A" * 44)
ACCOUNT = f"{CHAIN.id} {ALICE.hex()}"


class FarLedger(MemoryLedger):
    """One at the end of a bad line: `before` is raised instead of entering, `lost` after it."""

    def __init__(self) -> None:
        super().__init__(GENESIS, SIGN[ISSUER], trio.current_time)
        self.before: MeshError | None = None
        self.lost: MeshError | None = None
        self.delay = 0.0
        self.came: list[SignedOperation] = []

    async def submit(self, signed: SignedOperation) -> None:
        await trio.sleep(self.delay)
        if self.before is not None:
            raise self.before
        self.came.append(signed)
        await super().submit(signed)
        await trio.sleep(self.delay)
        if self.lost is not None:
            raise self.lost


@pytest.fixture
async def ledger() -> FarLedger:
    return FarLedger()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncGenerator[Journal]:
    async with open_journal(tmp_path / "journal.db", OWNER) as opened:
        yield opened


def teller_of(ledger: FarLedger, journal: Journal) -> Teller:
    return Teller(ledger, journal, Signer(ALICE, SIGN[ALICE]), trio.current_time)


@asynccontextmanager
async def running(teller: Teller) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(teller.run)
        yield
        nursery.cancel_scope.cancel()


async def stake_of(ledger: FarLedger) -> int:
    return (await ledger.account(ALICE)).stake.micro


def bond(micro: int) -> ops.Bond:
    return ops.Bond(Amount(micro))


async def test_operations_are_done_in_their_order(ledger: FarLedger, journal: Journal) -> None:
    teller = teller_of(ledger, journal)
    for micro in (1, 2, 3, 3):
        await teller.perform(bond(micro))
    assert [(signed.nonce, signed.operation) for signed in ledger.came] == [
        (1, bond(1)), (2, bond(2)), (3, bond(3)), (4, bond(3)),
    ]  # fmt: skip
    assert await journal.read(waiting_intents, KIND, ACCOUNT) == []


async def test_what_is_refused_is_buried_and_takes_no_nonce(ledger: FarLedger, journal: Journal) -> None:
    teller = teller_of(ledger, journal)
    with pytest.raises(InsufficientBalance, match="1001"):
        await teller.perform(ops.Transfer(BOB, Amount(1_001_000_000)))
    [dead] = await journal.read(dead_intents, KIND, 9)
    assert "not 1001" in dead.last_error
    await teller.perform(bond(5))
    assert await stake_of(ledger) == 5


@pytest.mark.parametrize("error", [NodeUnreachable("The issuer is away."), NetworkError("It broke.")])
async def test_an_unreachable_ledger_is_tried_until_it_is_there(
    ledger: FarLedger, journal: Journal, error: MeshError, autojump_clock: MockClock
) -> None:
    teller = teller_of(ledger, journal)
    ledger.before = error
    async with running(teller):
        for micro in (7, 8):
            with pytest.raises(TransactionFailed, match="not taken it yet") as caught:
                await teller.perform(bond(micro))
            assert caught.value.code == 3002
        await trio.sleep(300)
        assert ledger.came == []
        ledger.before = None
        await ledger.after(1)
    assert [signed.nonce for signed in ledger.came] == [1, 2]
    assert await stake_of(ledger) == 15


async def test_a_lost_answer_leads_to_the_same_operation_not_to_a_second(
    ledger: FarLedger, journal: Journal
) -> None:
    teller = teller_of(ledger, journal)
    ledger.lost = NetworkError("The answer was lost.")
    for _ in range(3):
        with pytest.raises(TransactionFailed):
            await teller.perform(bond(7))
    ledger.lost = None
    await teller.perform(bond(7))
    assert await stake_of(ledger) == 7
    assert len(set(ledger.came)) == 1
    await teller.perform(bond(7))
    assert await stake_of(ledger) == 14


async def test_what_waited_is_refused_and_those_behind_it_go_on(
    ledger: FarLedger, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    teller = teller_of(ledger, journal)
    ledger.before = NodeUnreachable("The issuer is away.")
    for operation in (ops.Transfer(BOB, Amount(900)), ops.Transfer(BOB, Amount(800)), bond(5)):
        with pytest.raises(TransactionFailed):
            await teller.perform(operation)
    ledger.before = None
    await teller.perform(bond(6))
    assert "refused an operation that waited" in caplog.text
    account = await ledger.account(ALICE)
    assert (account.balance, account.stake, account.nonce) == (Amount(89), Amount(11), 3)


async def test_it_goes_on_after_a_restart(
    ledger: FarLedger, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path, OWNER) as journal:
        ledger.lost = NetworkError("The answer was lost.")
        with pytest.raises(TransactionFailed):
            await teller_of(ledger, journal).perform(bond(7))
        ledger.before = NodeUnreachable("The issuer is away.")
        with pytest.raises(TransactionFailed):
            await teller_of(ledger, journal).perform(bond(9))
    ledger.before = ledger.lost = None
    async with open_journal(path, OWNER) as journal, running(teller_of(ledger, journal)):
        await ledger.after(1)
        assert await stake_of(ledger) == 16
        assert [signed.nonce for signed in ledger.came] == [1, 1, 2]


async def test_what_waits_for_another_ledger_is_not_sent_to_this_one(
    ledger: FarLedger, journal: Journal
) -> None:
    ledger.before = NodeUnreachable("The issuer is away.")
    with pytest.raises(TransactionFailed):
        await teller_of(ledger, journal).perform(bond(7))
    stranger = Teller(ledger, journal, Signer(BOB, SIGN[BOB]), trio.current_time)
    ledger.before = None
    with pytest.raises(InsufficientBalance):
        await stranger.perform(bond(1))
    assert await stake_of(ledger) == 0


@pytest.mark.parametrize("seed", range(6))
async def test_cancels_and_faults_at_any_moment_do_nothing_twice(
    ledger: FarLedger, tmp_path: Path, seed: int, autojump_clock: MockClock
) -> None:
    """Every bond is another amount, so that the sum tells which were done and how often."""
    rng, asked = random.Random(seed), 0
    ledger.delay = 0.1
    for life in range(2):
        async with open_journal(tmp_path / "journal.db", OWNER) as journal:
            teller = teller_of(ledger, journal)
            async with running(teller):
                for step in range(4):
                    micro = 1 << (4 * life + step)
                    ledger.before, ledger.lost = rng.choice(
                        [(None, None), (NodeUnreachable("away"), None), (None, NetworkError("lost"))]
                    )
                    with trio.move_on_after(rng.choice([0, 0.05, 0.15, 9])) as scope:
                        asked += micro
                        try:
                            await teller.perform(bond(micro))
                        except TransactionFailed:
                            continue
                    if not scope.cancelled_caught:
                        assert await stake_of(ledger) & micro
    ledger.before = ledger.lost = None
    async with open_journal(tmp_path / "journal.db", OWNER) as journal:
        await teller_of(ledger, journal).perform(bond(1 << 8))
        assert await journal.read(waiting_intents, KIND, ACCOUNT) == []
        asked += 1 << 8
    done = await stake_of(ledger)
    assert done & asked == done
    assert (await ledger.account(ALICE)).nonce == done.bit_count()


async def test_what_was_sent_is_told_and_what_became_of_it(
    ledger: FarLedger, journal: Journal, autojump_clock: MockClock
) -> None:
    teller = teller_of(ledger, journal)
    await teller.perform(ops.Transfer(BOB, Amount(5)))
    await trio.sleep(1)
    with pytest.raises(InsufficientBalance):
        await teller.perform(ops.Transfer(BOB, Amount(5_000)))
    await trio.sleep(1)
    await teller.perform(bond(1))
    ledger.before = NodeUnreachable("The issuer is away.")
    for _ in range(2):  # the same again waits for the one that waits
        with pytest.raises(TransactionFailed) as caught:
            await teller.perform(ops.Transfer(BOB, Amount(7)))
        assert caught.value.next_step.startswith("Do not ask for it again")
    told = [
        (row.transfer.amount.micro, row.state, row.refused[:7])
        for row in await sendings(journal, CHAIN, ALICE, 9)
    ]
    assert told == [(7, "waiting", "The iss"), (5_000, "dead", "The acc"), (5, "done", "")]
    assert await sendings(journal, CHAIN, BOB, 9) == []


async def test_what_the_ledger_took_is_not_to_be_asked_for_again_though_the_disk_did_not_take_it(
    ledger: FarLedger,
) -> None:
    journal = QuickJournal(OWNER)
    teller = teller_of(ledger, journal)
    submit = ledger.submit

    async def fill_disk(signed: SignedOperation) -> None:
        await submit(signed)
        journal.full = True

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "submit", fill_disk)
        with pytest.raises(TransactionFailed) as caught:
            await teller.perform(bond(7))
    assert "Do not ask for it again" in caught.value.next_step
    journal.full = False
    await teller.catch_up()
    assert await stake_of(ledger) == 7
