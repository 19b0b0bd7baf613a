"""The owner's socket: his alone, at any depth of folders, replaced when it was left behind."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
import trio

from llmesh.node.faults import StartRefused
from llmesh.node.owner import MAX_PATH, SOCKET, fitting_path, owner_socket


async def connects(folder: Path) -> bool:
    with fitting_path(folder) as path:
        assert len(path) <= MAX_PATH
        try:
            stream = await trio.open_unix_socket(path)
        except OSError:
            return False
        await stream.aclose()
        return True


@pytest.mark.parametrize("name", ["home", "d" * 200])
async def test_it_is_the_owners_and_gone_afterwards(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with owner_socket(folder):
        mode = (folder / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert await connects(folder)
    assert not await connects(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("left_behind", ["socket", "file"])
async def test_what_was_left_behind_is_replaced(tmp_path: Path, left_behind: str) -> None:
    if left_behind == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / SOCKET))
    else:
        (tmp_path / SOCKET).write_text("x")
    assert not await connects(tmp_path)
    with owner_socket(tmp_path):
        assert await connects(tmp_path)


def test_where_there_can_be_none_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=SOCKET), owner_socket(tmp_path / "nowhere"):
        pass
