"""What does paying add to an inference over one mesh hop, and what do its parts cost?

Two nodes of one swarm, each a process: a provider, and a payer that joined by an invite.  The provider
has the same model twice, free and for a fee (a copy with one more file, so with an id of its own); the
payer's REST gateway is asked for both in turns, so that a busy machine hurts both alike.  A paid
request's charge, voucher and receipt are on the provider's disk before the answer leaves: what one
such commit takes here (`commit`, in this process on the same disk) is told apart from the rest.

Also: one voucher signed and verified, one receipt signed and verified.
Prints a table and writes benchmarks/results/payments.json.

Usage: python benchmarks/payments.py [--rounds 10] [--requests 200] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trio
from journal import WORK, one_run
from roundtrip import RESULTS, Samples, measure, rest, spawned

from llmesh import crypto
from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, RequestId
from llmesh.core.receipt import Charge, Receipt, check_receipt, sign_receipt
from llmesh.core.typed import Chain
from llmesh.core.voucher import ChannelConfig, Voucher, channel_id, check_voucher, sign_voucher
from llmesh.demo import SENTIMENT_ANALYZER

FREE, PAID, FEE = "free-model", "paid-model", "0.001"
CLIENTS = (1, 8)
SECRET = bytes(31) + b"\1"
CHAIN = Chain((1 << 40) + 1, Address(b"i" * 20))


def shop(folder: Path) -> list[str]:
    """What the provider deploys: one model twice, the second with a file more."""
    copies = []
    for name, fee in ((FREE, "0"), (PAID, FEE)):
        shutil.copytree(SENTIMENT_ANALYZER, folder / name)
        (folder / name / "NOTE.txt").write_text(name)
        copies += ["--deploy", f"{folder / name},name={name},fee={fee}"]
    return copies


def invite(folder: Path) -> str:
    """One line of the running node's."""
    command = [
        sys.executable, "-m", "llmesh.node", "invite", "--credit", "5000", "--data-dir", str(folder),
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(word for word in said.split() if word.startswith("llmesh1-"))


async def main(rounds: int, requests: int, parent: Path | None) -> dict[str, Any]:
    """Run it all; the result as it is written."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
        stack.enter_context(spawned(folder / "provider", *shop(folder)))
        payer = stack.enter_context(spawned(folder / "payer", "--join", invite(folder / "provider")))
        await trio.sleep(3)
        samples = {(name, clients): Samples() for name in (FREE, PAID) for clients in CLIENTS}
        for name in (FREE, PAID):
            await measure(lambda name=name: rest(payer.url, name), 1, requests, Samples())  # type: ignore[misc]
        for number in range(rounds):
            for (name, clients), into in samples.items():
                await measure(lambda name=name: rest(payer.url, name), clients, requests, into)  # type: ignore[misc]
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    rows = {f"{name}, {clients}": each.row() for (name, clients), each in samples.items()}
    one = {name: rows[f"{name}, 1"]["p50_ms"] for name in (FREE, PAID)}
    eight = {name: rows[f"{name}, 8"]["per_second"] for name in (FREE, PAID)}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg(),
        "rounds": rounds,
        "requests_per_turn": requests,
        "requests": rows,
        "paying_adds_p50_ms": round(one[PAID] - one[FREE], 3),
        "throughput_at_8_clients": round(eight[PAID] / eight[FREE], 3),
    }


def parts(parent: Path) -> dict[str, Any]:
    """What goes into a payment, in microseconds; commits as of one and of eight callers."""
    sign = crypto.signer(SECRET)
    signer = Address(crypto.address_of(SECRET))
    config = ChannelConfig(signer, signer, signer, signer, CHAIN.contract, 86_400, bytes(32))
    mark = channel_id(config, CHAIN)
    vouchers = iter(range(1, 1 << 40))
    voucher = sign_voucher(Voucher(mark, Amount(1)), CHAIN, sign)
    receipt = receipt_of(signer, Charge(mark, 1, Amount(1), Amount(1)))
    signed = sign_receipt(receipt, CHAIN, sign)
    commits = {callers: one_run("timed", parent, callers, 1.0) for callers in CLIENTS}
    return {
        "voucher_sign_us": micros(lambda: sign_voucher(Voucher(mark, Amount(next(vouchers))), CHAIN, sign)),
        "voucher_verify_us": micros(lambda: check_voucher(voucher, config, CHAIN)),
        "receipt_sign_us": micros(lambda: sign_receipt(receipt, CHAIN, sign)),
        "receipt_verify_us": micros(lambda: check_receipt(signed, CHAIN)),
        "commits_per_second": {callers: round(each.rate) for callers, each in commits.items()},
        "commit_p50_us": {callers: round(each.p50) for callers, each in commits.items()},
        "fsync_p50_us": {
            callers: round(1e6 * statistics.median(each.syncs)) for callers, each in commits.items()
        },
    }


def receipt_of(provider: Address, charge: Charge) -> Receipt:
    attempt = AttemptId(RequestId("ab" * 16), 1)
    return Receipt(provider, attempt, bytes(32), WORK, charge, 1)


def micros(work: Callable[[], object], times: int = 2_000) -> float:
    """The median over batches of ten."""
    took = []
    for _ in range(times // 10):
        began = time.perf_counter()
        for _ in range(10):
            work()
        took.append((time.perf_counter() - began) / 10)
    return round(1e6 * statistics.median(took), 1)


def table(result: dict[str, Any]) -> str:
    lines = [f"{'model, clients':<20}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}"]
    lines += [
        f"{name:<20}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['per_second']:>9.0f}"
        for name, row in result["requests"].items()
    ]
    lines += [f"{name}: {value}" for name, value in result.items() if name != "requests"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None, help="a disk to measure, instead of /tmp")
    chosen = parser.parse_args()
    outcome = trio.run(main, chosen.rounds, chosen.requests, chosen.folder)
    outcome["parts"] = parts(chosen.folder or Path(tempfile.gettempdir()))
    print(table(outcome))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "payments.json").write_text(json.dumps(outcome, indent=2) + "\n")
