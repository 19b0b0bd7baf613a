"""What `llmesh doctor` finds: each thing well, and each thing broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from llmesh.core.amount import Amount
from llmesh.journal.open import open_journal
from llmesh.node.checks import Finding, machine
from llmesh.node.checks.files import disk, files
from llmesh.node.checks.life import gateway, life
from llmesh.node.cli import main
from llmesh.node.config import NodeConfig
from llmesh.node.home import open_home
from llmesh.node.swarm import account_signer, open_log

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - as shutil has it
SWARM = {"id": "f" * 64, "issuer": False, "followed": 2, "balance": 5, "alarm": "", "accused": 0}
STATUS: dict[str, Any] = {
    "version": "9", "models": 1, "peers": 3, "reachable": True, "sandbox": "confined",
    "providers": ["cpu"], "swarm": SWARM,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What a first start leaves behind."""

    async def start() -> None:
        with open_home(tmp_path / "home") as home:
            async with (
                open_log(home, account_signer(home), Amount(0), None),
                open_journal(home.folder / "journal.db", home.peer_id),
            ):
                pass

    trio.run(start)
    return tmp_path / "home"


def levels(found: Any) -> dict[str, str]:
    """The levels by subject; whoever says that something is wrong says what to do."""
    rows: list[Finding] = list(found)
    assert all(row.next_step for row in rows if row.level != "ok")
    return {row.subject: row.level for row in rows}


WELL = {"data directory": "ok", "keys": "ok", "journal": "ok", "ledger": "ok", "clock": "ok"}


def test_a_sound_data_directory_is_well(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.iterdir() if path.suffix != ".db-shm"}
    assert levels(files(home)) == WELL
    assert {path: path.read_bytes() for path in before} == before


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4000] = b"x" * 3900
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("subject", "level", "harm"),
    [
        ("data directory", "warn", lambda home: home.chmod(0o755)),
        ("keys", "fail", lambda home: (home / "account.key").unlink()),
        ("keys", "fail", lambda home: (home / "account.key").write_text("no key")),
        ("keys", "fail", lambda home: (home / "identity.key").chmod(0o644)),
        ("journal", "fail", lambda home: (home / "journal.db").unlink()),
        ("journal", "fail", lambda home: overwrite(home / "journal.db")),
        ("ledger", "fail", lambda home: overwrite(home / "ledger.db")),
        ("ledger", "fail", lambda home: (home / "ledger.db").unlink()),
        ("clock", "warn", lambda home: os.utime(home / "lock", (time.time() + 3600,) * 2)),
    ],
)
def test_each_harm_is_found(home: Path, subject: str, level: str, harm: Callable[[Path], object]) -> None:
    harm(home)
    found = levels(files(home))
    assert found[subject] == level
    assert {name: each for name, each in found.items() if name != subject} == {
        name: "ok" for name in WELL if name != subject and name in found
    }


def test_another_nodes_journal_is_found(home: Path, tmp_path: Path) -> None:
    with open_home(tmp_path / "other"):
        pass
    for key in ("identity.key", "account.key"):
        shutil.copy(tmp_path / "other" / key, home / key)
    assert levels(files(home))["journal"] == "fail"


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    assert levels(files(tmp_path / "none")) == {"data directory": "warn"}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("free", "level"), [(10**8, "fail"), (10**9, "warn"), (10**10, "ok")])
def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    assert levels([disk(tmp_path / "a" / "b")]) == {"disk": level}


@pytest.mark.parametrize(
    ("change", "subject", "level"),
    [
        ({}, "swarm", "ok"),
        ({"peers": 0}, "peers", "warn"),
        ({"reachable": None}, "reachable", "ok"),
        ({"reachable": False}, "reachable", "warn"),
        ({"sandbox": "limits"}, "sandbox", "warn"),
        ({"sandbox": ""}, "sandbox", "warn"),
        ({"providers": ["cuda"]}, "providers", "fail"),
        ({"swarm": {**SWARM, "followed": 0}}, "swarm", "warn"),
        ({"swarm": {**SWARM, "issuer": True, "followed": 0}}, "swarm", "ok"),
        ({"swarm": {**SWARM, "alarm": "two logs"}}, "swarm", "fail"),
    ],
    ids=str,
)
def test_a_running_node(change: dict[str, Any], subject: str, level: str) -> None:
    found = levels(life(NodeConfig(), {**STATUS, **change}))
    assert found.pop(subject) == level
    assert set(found.values()) == {"ok"}


async def test_a_gateway_that_does_not_answer_is_found(tmp_path: Path) -> None:
    assert (await gateway(tmp_path)).level == "warn"
    (tmp_path / "node.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))
    assert levels([await gateway(tmp_path)]) == {"gateway": "fail"}


def test_pythons_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels([machine.python(), machine.packages()]) == {"python": "ok", "packages": "ok"}
    assert levels([machine.python((3, 10))]) == {"python": "fail"}
    versions = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "trio" else versions(name))
    found = machine.packages()
    assert (found.level, found.text) == ("fail", "trio is 0.1, not <0.36,>=0.30")
    monkeypatch.setattr(metadata, "version", lambda name: "1.23")
    assert "exactly one" in machine.packages().text


def test_ports_that_are_taken_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = NodeConfig(port=port, listen=(f"/ip4/127.0.0.1/tcp/{port}",))
        assert levels(machine.ports(config)) == {"gateway port": "fail", "mesh port": "fail"}
    free = NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",))
    assert levels(machine.ports(free)) == {"gateway port": "ok", "mesh port": "ok"}


def test_the_verb_says_it_all_and_fails_where_something_does(home: Path) -> None:
    (home / "journal.db").unlink()
    done = CliRunner().invoke(main, ["doctor", "--port", "0", "--data-dir", str(home)])
    assert done.exit_code == 2, "options of the start come before the verb"
    done = CliRunner().invoke(main, ["--port", "0", "doctor", "--data-dir", str(home)])
    assert done.exit_code == 1
    rows = {line[6:20].strip(): line for line in done.stdout.splitlines()}
    assert rows["journal"].startswith("fail")
    assert rows["node"] == "warn  node            does not run. Start it: llmesh start."
    assert rows["python"].split()[:2] == ["ok", "python"]
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in rows["python"]
    assert {"sandbox", "providers", "gateway port", "prerequisites"} <= rows.keys()
