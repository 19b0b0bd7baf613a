"""One ledger is like the other: whatever is asked of them, they have the same books and refuse the same."""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from llmesh.core import operations as ops
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.operations import Operation, SignedOperation, sign_operation
from llmesh.core.voucher import ChannelConfig, channel_id
from llmesh.ledger.ledger import REFUSALS, Ledger
from llmesh.ledger.local import open_local_ledger, verify_ledger
from llmesh.ledger.memory import MemoryLedger
from tests.core.banking import ALICE, BOB, CAROL, CHAIN, GENESIS, ISSUER, SIGN, claim_of, config

PEOPLE = (ISSUER, ALICE, BOB, CAROL)
CHANNELS = tuple(config(payer, receiver) for payer in (ALICE, BOB) for receiver in (BOB, CAROL))
SHM = Path("/dev/shm")


class Clock:
    """Moved by the test alone."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: what is tested is not the disk."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as name:
        yield Path(name)


@asynccontextmanager
async def both(path: Path) -> AsyncGenerator[tuple[list[Ledger], Clock]]:
    clock = Clock()
    async with open_local_ledger(path, GENESIS, SIGN[ISSUER], clock) as local:
        yield [MemoryLedger(GENESIS, SIGN[ISSUER], clock), local], clock


def operation(rng: random.Random) -> tuple[Address, Operation]:
    """Something that whoever does it may do, though it may have too little for it."""
    channel: ChannelConfig = rng.choice(CHANNELS)
    mark, amount = channel_id(channel, CHAIN), Amount(rng.choice((0, 1, 20, 300)))
    who, anybody = rng.choice(PEOPLE), rng.choice((ISSUER, ALICE))
    claim = ops.Claim((claim_of(channel, rng.randrange(150, 300), rng.randrange(200)),))
    choices: list[tuple[Address, Operation]] = [
        (ISSUER, ops.Mint(who, amount)), (anybody, ops.Transfer(who, amount)),
        (channel.payer, ops.Deposit(channel, amount)), (ALICE, ops.Deposit(CHANNELS[0], amount)),
        (channel.receiver, claim), (anybody, ops.Settle(channel.receiver)),
        (channel.receiver, ops.Refund(mark, amount)), (channel.payer, ops.InitiateWithdraw(mark, amount)),
        (channel.payer, ops.FinalizeWithdraw(mark)), (anybody, ops.Bond(amount)),
        (anybody, ops.StartUnbond(amount)), (anybody, ops.Withdraw()),
    ]  # fmt: skip
    return rng.choice(choices)


async def a_step(rng: random.Random, ledger: Ledger, before: list[SignedOperation]) -> SignedOperation:
    """Most often something new; now and then something old, of another, forged or out of turn."""
    chance = rng.random()
    if before and chance < 0.1:
        return rng.choice(before)
    actor, wanted = operation(rng)
    if chance < 0.15:
        actor = rng.choice(PEOPLE)
    nonce = (await ledger.account(actor)).nonce + (1 if chance < 0.9 else rng.randrange(3))
    signed = sign_operation(actor, nonce, wanted, CHAIN, SIGN[actor])
    return signed if chance < 0.97 else replace(signed, actor=rng.choice(PEOPLE))


async def outcome(ledger: Ledger, signed: SignedOperation) -> tuple[type[Exception], str] | None:
    try:
        await ledger.submit(signed)
    except REFUSALS as error:
        return type(error), error.message
    return None


async def cells(ledger: Ledger) -> list[object]:
    accounts = [await ledger.account(owner) for owner in PEOPLE]
    return [ledger.height, *accounts, *[await ledger.channel(channel_id(c, CHAIN)) for c in CHANNELS]]


async def test_a_thousand_random_sequences_lead_to_the_same(folder: Path) -> None:
    taken = refused = 0
    for seed in range(1_000):
        rng, before = random.Random(seed), list[SignedOperation]()
        path = folder / f"{seed % 2}.db"
        async with both(path) as ((memory, local), clock):
            for _ in range(rng.randrange(1, 18)):
                clock.now += rng.choice((0.0, 0.0, 0.4, 1_000.0, 4_000.0))
                signed = await a_step(rng, memory, before)
                before.append(signed)
                said = await outcome(memory, signed)
                assert said == await outcome(local, signed)
                assert await cells(memory) == await cells(local)
                taken, refused = taken + (said is None), refused + (said is not None)
            height = memory.height
        if seed % 10 == 0:
            assert verify_ledger(path).head.sequence == height
        path.unlink()
    assert taken > 2_000
    assert refused > 2_000


async def test_a_ledger_opened_again_is_the_same(folder: Path) -> None:
    rng, path = random.Random(1), folder / "again.db"
    clock, reference = Clock(), MemoryLedger(GENESIS, SIGN[ISSUER], lambda: 0.0)
    for _ in range(40):
        async with open_local_ledger(path, GENESIS, SIGN[ISSUER], clock) as local:
            for _ in range(3):
                signed = await a_step(rng, reference, [])
                assert await outcome(reference, signed) == await outcome(local, signed)
            assert await cells(reference) == await cells(local)
        clock.now += 1_000  # that passes while it is closed does not count
    assert reference.height > 20


async def test_whoever_waits_hears_of_what_comes(folder: Path) -> None:
    async with both(folder / "waits.db") as (ledgers, _):
        for ledger in ledgers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ledger.after, 0)
                await ledger.submit(sign_operation(ALICE, 1, ops.Bond(Amount(1)), CHAIN, SIGN[ALICE]))
            assert await ledger.after(0) == ledger.height == 1
