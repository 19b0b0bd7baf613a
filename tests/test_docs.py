"""The documents keep up with the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmesh.errors import ERRORS

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
DOCUMENTS = [*READMES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[str]:
    return re.findall(r"```\w*\n([\s\S]*?)```", path.read_text())


def test_both_readmes_show_the_same_code() -> None:
    english, chinese = (blocks(path) for path in READMES)
    assert english == chinese


def test_both_readmes_have_the_same_sections() -> None:
    english, chinese = (re.findall(r"^(#+) ", path.read_text(), re.MULTILINE) for path in READMES)
    assert english == chinese


def test_ci_runs_the_readmes_test_command() -> None:
    command = (ROOT / ".ci/run").read_text().splitlines()[-1]
    assert command.endswith("pytest")
    for path in READMES:
        assert any(command in block for block in blocks(path)), f"{path.name} lacks: {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_error_code_is_explained() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    for code, error in ERRORS.items():
        assert f"| {code} | {error.name} | {error.http_status} |" in text


def test_every_command_is_explained() -> None:
    from llmesh.node.cli import main

    text = (ROOT / "docs/cli.md").read_text()
    for command in main.commands:
        assert re.search(rf"^\|.*`{command}\b", text, re.MULTILINE), f"docs/cli.md does not explain {command}"


def test_every_option_is_explained() -> None:
    from llmesh.node.cli import main

    text = (ROOT / "docs/node.md").read_text()
    for parameter in main.params:
        for option in [o for o in [*parameter.opts, *parameter.secondary_opts] if o != "--help"]:
            assert f"`{option}" in text, f"docs/node.md does not explain {option}"
