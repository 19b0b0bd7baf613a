"""The data directory: one holder, a key that is never replaced, numbers that only grow."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmesh.node.faults import StartRefused
from llmesh.node.files import write_durably
from llmesh.node.home import open_home
from llmesh.node.identity import load_seed


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_new_home_gets_a_key_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with open_home(folder) as home:
        seed, account = home.seed, home.account_seed
    assert len(seed) == len(account) == 32
    assert seed != account
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("identity.key", "account.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    with open_home(folder) as home:
        assert (home.seed, home.account_seed) == (seed, account)


def test_a_held_home_is_refused_with_the_holder_and_left_untouched(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        home.next_sequence()
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(StartRefused, match=rf"process {os.getpid()}\)"), open_home(tmp_path):
            pass
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with open_home(tmp_path):
        pass


def test_a_killed_holder_gives_its_home_back(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from llmesh.node.home import open_home\n"
        "with open_home(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StartRefused, match=f"process {holder.pid}"), open_home(tmp_path):
            pass
        holder.kill()
    with open_home(tmp_path):
        pass


def test_the_sequence_grows_over_restarts(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        first = [home.next_sequence() for _ in range(3)]
    with open_home(tmp_path) as home:
        second = home.next_sequence()
    assert [*first, second] == [first[0] + n for n in range(4)]


@pytest.mark.parametrize("damage", [b"", b"x", b"-5\n", b"9" * 40, "٣".encode(), b"\xff"])
def test_a_damaged_sequence_goes_on_from_the_clock(tmp_path: Path, damage: bytes) -> None:
    with open_home(tmp_path) as home:
        first = home.next_sequence()
    (tmp_path / "sequence").write_bytes(damage)
    with open_home(tmp_path) as home:
        assert home.next_sequence() >= first


def test_a_full_disk_stops_no_announcement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_home(tmp_path) as home:
        first = home.next_sequence()
        monkeypatch.setattr(os, "fsync", full)
        assert [home.next_sequence(), home.next_sequence()] == [first + 1, first + 2]
        assert "No space left" in caplog.text
        monkeypatch.undo()
        assert home.next_sequence() == first + 3
    with open_home(tmp_path) as home:
        assert home.next_sequence() == first + 4


def test_ports_are_remembered(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        assert home.remembered_port() is None
        home.remember_port(4007)
    with open_home(tmp_path) as home:
        assert home.remembered_port() == 4007


def test_node_json_is_there_while_the_node_runs(tmp_path: Path) -> None:
    with open_home(tmp_path) as home:
        with home.published({"url": "http://127.0.0.1:1"}):
            assert json.loads((tmp_path / "node.json").read_text()) == {"url": "http://127.0.0.1:1"}
        assert not (tmp_path / "node.json").exists()


@pytest.mark.parametrize("damage", [b"", b"00", b"zz" * 32, b"0" * 63, b"0" * 65, b"\xff" * 64])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, damage: bytes) -> None:
    key = tmp_path / "identity.key"
    write_durably(key, damage)
    with pytest.raises(StartRefused, match="damaged: restore it"):
        load_seed(key)
    assert key.read_bytes() == damage


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "identity.key"
    load_seed(key)
    key.chmod(0o640)
    with pytest.raises(StartRefused, match="chmod 600"):
        load_seed(key)


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartRefused, match="cannot be used"), open_home(folder):
            pass
    (tmp_path / "home" / "identity.key").mkdir(parents=True)
    with pytest.raises(StartRefused, match=r"identity.key cannot be read"), open_home(tmp_path / "home"):
        pass


@settings(deadline=None, max_examples=30)  # it waits for the disk
@given(data=st.binary(max_size=100))
def test_a_file_is_replaced_whole(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    write_durably(folder / "f", b"old" * 100)
    write_durably(folder / "f", data)
    assert (folder / "f").read_bytes() == data
    assert [path.name for path in folder.iterdir()] == ["f"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_key_behind_a_dead_link_is_not_replaced(tmp_path: Path) -> None:
    """Such as one on a disk that is not mounted."""
    link = tmp_path / "identity.key"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartRefused, match="cannot be read"):
        load_seed(link)
    assert link.is_symlink()
    assert not (tmp_path / "elsewhere").exists()
