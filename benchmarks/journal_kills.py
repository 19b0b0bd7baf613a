"""Does a SIGKILL at any moment lose an acknowledged commit, or double one?

A process charges eight channels of one journal at once, as fast as it can, and tells its parent
each charge once the commit has returned.  The parent kills it at a random moment, opens the journal
(timed: that is the recovery), and compares: every charge it was told of is there once, each
channel's sum is that of its receipts, nothing was there before and is gone, and what nobody was
told of is at most what was under way.  Then the next process goes on with the same journal.

Usage: python benchmarks/journal_kills.py [--kills 200] [--seed N]; exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import trio

from llmesh.core.address import NOBODY
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import Charge, Receipt, SignedReceipt, Work
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, Voucher
from llmesh.journal.backup import check_integrity
from llmesh.journal.channels import AddChannel, ChannelRow, all_channels
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side, read_amount
from llmesh.journal.open import Journal, open_journal

OWNER = PeerId("12D3KooW" + "A" * 44)
PEER = PeerId("12D3KooW" + "B" * 44)
CHANNELS = 8
FEE = 7
RECOVERY = 0.2  # seconds
CONFIG = ChannelConfig(NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, 86_400, bytes(32))
WORK = Work(ModelId("ab" * 32), "fp32-strict", bytes(32), bytes(32))


def charge(channel: ChannelId, sequence: int) -> RecordCharge:
    """Charge number `sequence` of a channel; its request is named by both."""
    sum_of_fees = Amount(FEE * sequence)
    attempt = AttemptId(RequestId(f"{channel[0]:016x}{sequence:016x}"), 1)
    receipt = Receipt(
        NOBODY, attempt, bytes(32), WORK, Charge(channel, sequence, Amount(FEE), sum_of_fees), 1
    )
    voucher = SignedVoucher(Voucher(channel, sum_of_fees), bytes(65))
    return RecordCharge(PEER, SignedReceipt(receipt, bytes(65)), voucher)


async def charge_for_ever(journal: Journal, row: ChannelRow) -> None:
    sequence = row.last.charge.sequence if row.last else 0
    while True:
        sequence += 1
        await journal.commit(charge(row.id, sequence))
        os.write(1, b"%d %d\n" % (row.id[0], sequence))


async def load(path: Path) -> None:
    """The process that is killed."""
    async with open_journal(path, OWNER) as journal:
        rows = await journal.read(all_channels, Side.PROVIDER)
        if not rows:
            rows = [
                ChannelRow(Side.PROVIDER, ChannelId(bytes([n]) * 32), PEER, CONFIG) for n in range(CHANNELS)
            ]
            await journal.commit(*map(AddChannel, rows))
        os.write(1, b"ready\n")
        async with trio.open_nursery() as nursery:
            for row in rows:
                nursery.start_soon(charge_for_ever, journal, row)


def live_and_die(path: Path, seconds: float) -> Counter[tuple[int, int]]:
    """One life of the process; the charges that it told of."""
    command = [sys.executable, __file__, "--load", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split(b"\n")[:-1]  # a line is written at once, but not twice
    return Counter((int(channel), int(sequence)) for channel, sequence in map(bytes.split, lines))


async def recover(path: Path) -> float:
    begun = time.perf_counter()
    async with open_journal(path, OWNER):
        return time.perf_counter() - begun


def found(path: Path) -> tuple[Counter[tuple[int, int]], dict[int, int]]:
    """The charges that have receipts, and the sum of each channel."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    check_integrity(db)
    receipts = Counter(
        (int(name[:16], 16), int(name[16:], 16)) for (name,) in db.execute("SELECT request FROM receipt")
    )
    sums = {
        channel[0]: read_amount(charged).micro
        for channel, charged in db.execute("SELECT id, charged FROM channel")
    }
    db.close()
    return receipts, sums


def faults(
    told: Counter[tuple[int, int]],
    before: Counter[tuple[int, int]],
    there: Counter[tuple[int, int]],
    sums: dict[int, int],
) -> dict[str, int]:
    """How many of each kind there are; all zero if the rule holds."""
    per_channel = Counter(channel for channel, _ in there.elements())
    return {
        "lost": sum((told - there).values()),
        "doubled": sum(count - 1 for count in there.values()),
        "gone": sum((before - there).values()),
        "unasked": max(0, sum((there - before - told).values()) - CHANNELS),
        "sums wrong": sum(sums.get(channel, 0) != FEE * per_channel[channel] for channel in range(CHANNELS)),
    }


def run(kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    recoveries = []
    there: Counter[tuple[int, int]] = Counter()
    acknowledged = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        for _ in range(kills):
            told = live_and_die(path, rng.uniform(0.0, 0.25))
            recoveries.append(trio.run(recover, path))
            before = there
            there, sums = found(path)
            total.update(faults(told, before, there, sums))
            acknowledged += sum(told.values())
    recoveries.sort()
    return {
        "kills": kills, "seed": seed, "acknowledged": acknowledged, "durable": sum(there.values()),
        **total, "recovery p50 ms": round(1e3 * recoveries[kills // 2], 1),
        "recovery worst ms": round(1e3 * recoveries[-1], 1),
        "ok": not any(total.values()) and recoveries[-1] < RECOVERY and acknowledged > 0,
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.load:
        trio.run(load, options.load)
        return
    result = run(options.kills, options.seed)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
