"""What does it cost to make a charge durable, and how much of that is the disk's fsync?

One journal in a temporary folder; 1, 8 and 64 callers each commit charges on a channel of their
own as fast as they can (a charge is receipt, sum and voucher in one).  Three runs take turns in each
round:

  full   the journal as it is
  timed  the same through a VFS that times every fsync (its Python costs a little by itself)
  idle   the same with the fsync left out: what our own work costs

`bare` is what a plain program pays to append 16 KiB to a file and fsync it.  `group` is commits per
transaction; `read` is one lookup of a receipt by a reader.  Figures are medians over the rounds.

Usage: python benchmarks/journal.py [--rounds 5] [--seconds 1.0] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import trio

from llmesh.core.address import NOBODY
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import Charge, Receipt, SignedReceipt, Work
from llmesh.core.voucher import ChannelConfig, ChannelId, SignedVoucher, Voucher
from llmesh.journal.channels import AddChannel, ChannelRow
from llmesh.journal.charge import RecordCharge
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.receipts import find_receipt
from llmesh.journal.schema import count_commits

OWNER = PeerId("12D3KooW" + "A" * 44)
PEER = PeerId("12D3KooW" + "B" * 44)
CALLERS = (1, 8, 64)
RUNS = ("full", "timed", "idle")
CONFIG = ChannelConfig(NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, 86_400, bytes(32))
WORK = Work(ModelId("ab" * 32), "fp32-strict", bytes(32), bytes(32))


class Timed(apsw.VFS):
    """The default VFS; `skip` leaves every sync out, else each one is timed."""

    def __init__(self, skip: bool) -> None:
        self.base = apsw.vfs_names()[0]
        self.skip = skip
        self.syncs: list[float] = []
        super().__init__("timed", self.base, makedefault=True)

    def xOpen(self, name: object, flags: list[int]) -> TimedFile:  # noqa: N802
        return TimedFile(self, name, flags)


class TimedFile(apsw.VFSFile):
    def __init__(self, vfs: Timed, name: object, flags: list[int]) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._vfs.skip:
            return
        begun = time.perf_counter()
        super().xSync(flags)
        self._vfs.syncs.append(time.perf_counter() - begun)


@dataclass
class Figures:
    """Of one run in one round; times in microseconds."""

    rate: float
    p50: float
    p99: float
    group: float
    syncs: list[float] = field(default_factory=list)


def quantile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return 1e6 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def charge(channel: ChannelId, sequence: int) -> RecordCharge:
    attempt = AttemptId(RequestId(os.urandom(16).hex()), 1)
    receipt = Receipt(
        NOBODY, attempt, bytes(32), WORK, Charge(channel, sequence, Amount(7), Amount(7 * sequence)), 1
    )
    voucher = SignedVoucher(Voucher(channel, Amount(7 * sequence)), bytes(65))
    return RecordCharge(PEER, SignedReceipt(receipt, bytes(65)), voucher)


async def call(journal: Journal, channel: ChannelId, until: float, times: list[float]) -> None:
    sequence = 0
    while time.perf_counter() < until:
        sequence += 1
        change = charge(channel, sequence)
        begun = time.perf_counter()
        await journal.commit(change)
        times.append(time.perf_counter() - begun)


async def measure(folder: Path, callers: int, seconds: float) -> Figures:
    times: list[float] = []
    channels = [ChannelId(os.urandom(32)) for _ in range(callers)]
    async with open_journal(folder / "journal.db", OWNER) as journal:
        await journal.commit(*(AddChannel(ChannelRow(Side.PROVIDER, id, PEER, CONFIG)) for id in channels))
        before = await journal.read(count_commits)
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(call, journal, channel, begun + seconds, times)
        took = time.perf_counter() - begun
        groups = await journal.read(count_commits) - before
    return Figures(len(times) / took, quantile(times, 0.5), quantile(times, 0.99), len(times) / groups)


def one_run(run: str, folder: Path, callers: int, seconds: float) -> Figures:
    vfs = None if run == "full" else Timed(skip=run == "idle")
    try:
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            figures = trio.run(measure, Path(inside), callers, seconds)
        if vfs:
            figures.syncs = vfs.syncs
        return figures
    finally:
        if vfs:
            vfs.unregister()


def bare_fsync(folder: Path, count: int = 200) -> list[float]:
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(count):
            begun = time.perf_counter()
            os.write(file.fileno(), bytes(16 << 10))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return times


async def reads(folder: Path, count: int = 1000) -> list[float]:
    times = []
    channel = ChannelId(bytes(32))
    async with open_journal(folder / "journal.db", OWNER) as journal:
        await journal.commit(AddChannel(ChannelRow(Side.PROVIDER, channel, PEER, CONFIG)))
        changes = [charge(channel, sequence) for sequence in range(1, count + 1)]
        await journal.commit(*changes)
        for change in changes:
            begun = time.perf_counter()
            await journal.read(find_receipt, Side.PROVIDER, PEER, change.receipt.attempt)
            times.append(time.perf_counter() - begun)
    return times


def compare(folder: Path, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    found: dict[tuple[int, str], list[Figures]] = {(n, run): [] for n in CALLERS for run in RUNS}
    bare: list[float] = []
    for _ in range(rounds):
        bare += bare_fsync(folder)
        for callers in CALLERS:
            for run in RUNS:
                found[callers, run].append(one_run(run, folder, callers, seconds))
    rows = {f"{n} callers, {run}": summary(figures) for (n, run), figures in found.items()}
    rows["bare fsync"] = {"p50 us": quantile(bare, 0.5), "p99 us": quantile(bare, 0.99)}
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        looked_up = trio.run(reads, Path(inside))
    rows["read"] = {"p50 us": quantile(looked_up, 0.5), "p99 us": quantile(looked_up, 0.99)}
    return rows


def summary(figures: list[Figures]) -> dict[str, float]:
    syncs = [time for figure in figures for time in figure.syncs]
    row = {
        "commits/s": statistics.median(figure.rate for figure in figures),
        "p50 us": statistics.median(figure.p50 for figure in figures),
        "p99 us": statistics.median(figure.p99 for figure in figures),
        "group": statistics.median(figure.group for figure in figures),
    }
    return row | (
        {"fsync p50 us": quantile(syncs, 0.5), "fsync p99 us": quantile(syncs, 0.99)} if syncs else {}
    )


def show(rows: dict[str, dict[str, float]]) -> None:
    columns = ("commits/s", "p50 us", "p99 us", "group", "fsync p50 us", "fsync p99 us")
    print(f"{'':22}" + "".join(f"{name:>14}" for name in columns))
    for name, row in rows.items():
        cells = (f"{row[column]:>14,.1f}" if column in row else " " * 14 for column in columns)
        print(f"{name:22}" + "".join(cells))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    rows = compare(options.folder, options.rounds, options.seconds)
    show(rows)
    about = {"sqlite": apsw.sqlite_lib_version(), "python": platform.python_version(), "cpus": os.cpu_count()}
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
