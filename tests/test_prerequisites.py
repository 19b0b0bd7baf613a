"""What a machine lacks is said in one block before anything is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmesh import prerequisites

ROOT = Path(__file__).parent.parent


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "llmesh.prerequisites"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_complete_machine_gets_one_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_missing_headers_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    fake(tmp_path, "cc", "echo 'probe.c:2:10: fatal error: gmp.h: No such file' >&2; exit 1")
    fake(tmp_path, "apt-get", "exit 0")
    done = run(tmp_path, PATH=str(tmp_path), CC="")
    assert done.returncode == 2
    assert "GMP (gmp.h)" in done.stderr
    assert "sudo apt-get install -y gcc libc6-dev libgmp-dev" in done.stderr
    assert len(done.stderr.splitlines()) <= 5


def test_no_compiler_at_all(tmp_path: Path) -> None:
    fake(tmp_path, "dnf", "exit 0")
    done = run(tmp_path, PATH=str(tmp_path), CC="")
    assert done.returncode == 2
    assert "No C compiler" in done.stderr
    assert "sudo dnf install -y gcc gmp-devel" in done.stderr


@pytest.mark.parametrize(
    ("version", "good"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_versions_of_python(version: tuple[int, int], good: bool) -> None:
    assert any("3.11, 3.12 or 3.13" in fault for fault in prerequisites.missing(version)) is not good
