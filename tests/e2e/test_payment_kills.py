"""SIGKILL of provider and payer at random moments under load, by the script that does it at length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "payment_kills.py"
FAULTS = (
    "lost", "doubled", "sums wrong", "spent unknown to the payer", "spent beyond the charges", "over budget",
)  # fmt: skip


@pytest.mark.slow
def test_no_kill_loses_doubles_or_overspends() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "20"],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert {name: result[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0), result
    assert result["charged"] > 0
    assert result["acknowledged"] > 0
