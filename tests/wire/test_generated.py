"""The generated code is that of the .proto files."""

from __future__ import annotations

import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_generated_code_is_current(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "proto/generate.py"))["generate"](tmp_path)
    fresh = sorted((tmp_path / "llmesh/wire").iterdir())
    assert [p.name for p in fresh] == sorted(p.name for p in (ROOT / "llmesh/wire").glob("*_pb2.py*"))
    for path in fresh:
        assert path.read_text() == (ROOT / "llmesh/wire" / path.name).read_text(), (
            f"{path.name}: run proto/generate.py"
        )


FIELD = re.compile(r"\s+(?:repeated |optional )?[\w.]+(?:<[^>]*>)? \w+ = \d+;")


@pytest.mark.parametrize("path", sorted((ROOT / "proto/llmesh/wire").glob("*.proto")), ids=lambda p: p.name)
def test_every_field_is_documented(path: Path) -> None:
    for before, line in pairwise(path.read_text().splitlines()):
        if FIELD.match(line):
            assert before.strip().startswith("//"), f"{path.name} does not explain: {line.strip()}"
