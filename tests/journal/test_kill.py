"""SIGKILL at random moments under load, by the script that asks the same question at length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "journal_kills.py"


def test_no_kill_loses_or_doubles_an_acknowledged_charge() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "20"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert {name: result[name] for name in ("lost", "doubled", "gone", "unasked", "sums wrong")} == {
        "lost": 0, "doubled": 0, "gone": 0, "unasked": 0, "sums wrong": 0,
    }, result  # fmt: skip
    assert result["durable"] >= result["acknowledged"] > 0
