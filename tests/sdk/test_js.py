"""The JavaScript SDK, by Node's own test runner: against a fake in JavaScript, and a gateway over fakes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import playwright

from .conftest import FakeMesh

SDK = Path(__file__).parent.parent.parent / "sdk/js"
NODE = Path(playwright.__file__).parent / "driver/node"
"""The one that Playwright brings, so that none has to be installed."""


def test_it_works_against_a_gateway(mesh: FakeMesh) -> None:
    tests = sorted(map(str, (SDK / "test").glob("*.test.js")))
    done = subprocess.run(
        [str(NODE), "--test", "--test-reporter=tap", *tests],
        env={**os.environ, "LLMESH_URL": mesh.url}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"^# fail 0$", done.stdout, re.MULTILINE)
    assert "# SKIP" not in done.stdout


def test_the_types_name_what_the_client_has() -> None:
    source = (SDK / "llmesh.js").read_text().partition("export class MeshClient {")[2]
    methods = set(re.findall(r"^  (?:async |get )?(\w+)\(.*\{$", source, re.MULTILINE))
    types = (SDK / "llmesh.d.ts").read_text().partition("export class MeshClient {")[2]
    assert {"constructor", "inference", "stream", "subscribe", "deploy", "webhooks"} <= methods
    assert set(re.findall(r"^  (?:readonly )?(\w+)[(:]", types, re.MULTILINE)) - {"url"} == methods
