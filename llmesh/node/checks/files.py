"""The files of a node, whether it runs or not: nothing is changed."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmesh import crypto
from llmesh.core.ids import PeerId
from llmesh.errors import MeshError
from llmesh.journal.backup import verify_journal
from llmesh.ledger.local import verify_ledger
from llmesh.node.checks.finding import Finding
from llmesh.node.faults import StartRefused
from llmesh.node.home import ACCOUNT, IDENTITY, JOURNAL, LEDGER
from llmesh.node.identity import load_seed

__all__ = ["disk", "files"]

LEAST, FEW = 200 * 10**6, 2 * 10**9
"""Bytes: with less free than the first nothing can be kept, with less than the second no large model."""
SLACK = 60.0
"""Seconds by which clocks may differ."""
_BACKUP = "Restore it from a backup: llmesh restore FOLDER."


def disk(folder: Path) -> Finding:
    """Whether there is room where the node keeps things."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB are free at {there}"
    if free < FEW:
        return Finding(
            "fail" if free < LEAST else "warn", "disk", text, "Make room there, or move --data-dir."
        )
    return Finding("ok", "disk", text)


def files(folder: Path) -> Iterator[Finding]:
    """The data directory and what is in it."""
    if not (folder / IDENTITY).exists():
        yield Finding(
            "warn", "data directory", f"no node was ever started in {folder}", "Begin: llmesh start."
        )
        return
    yield _private(folder)
    try:
        owner = PeerId(crypto.identity_of(load_seed(folder / IDENTITY)))
        if not (folder / ACCOUNT).exists():
            yield Finding("fail", "keys", f"{folder / ACCOUNT} is missing: it is the node's money", _BACKUP)
            return
        crypto.address_of(load_seed(folder / ACCOUNT))
    except (StartRefused, ValueError) as error:
        yield Finding("fail", "keys", str(error), _BACKUP)
        return
    yield Finding("ok", "keys", f"node {owner}; only you can read them")
    yield _sound("journal", folder / JOURNAL, lambda path: f"{verify_journal(path, owner)} commits, whole")
    yield from _ledger(folder)


def _private(folder: Path) -> Finding:
    found = folder.stat()
    if found.st_uid != os.getuid():
        return Finding(
            "fail",
            "data directory",
            f"{folder} belongs to another user",
            "Run as that user, or use another --data-dir.",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        return Finding(
            "warn", "data directory", f"others can look into {folder}", f"Close it: chmod 700 '{folder}'."
        )
    return Finding("ok", "data directory", f"{folder} is yours alone")


def _sound(subject: str, path: Path, check: Callable[[Path], str]) -> Finding:
    if not path.exists():
        return Finding("fail", subject, f"{path} is missing", _BACKUP)
    try:
        return Finding("ok", subject, check(path))
    except MeshError as error:
        return Finding("fail", subject, error.message, _BACKUP)


def _ledger(folder: Path) -> Iterator[Finding]:
    seen: list[float] = [path.stat().st_mtime for path in folder.iterdir() if path.is_file()]

    def check(path: Path) -> str:
        found = verify_ledger(path)
        seen.append(found.head.at)
        return (
            f"{found.head.sequence} entries of swarm {found.genesis.hash.hex()[:16]}, all as they were signed"
        )

    yield _sound("ledger", folder / LEDGER, check)
    yield _clock(max(seen))


def _clock(latest: float) -> Finding:
    behind = latest - time.time()
    if behind > SLACK:
        return Finding(
            "warn", "clock", f"it is {behind:.0f} s behind what this node wrote or heard",
            "Set it by NTP: announcements and invites are judged by it.",
        )  # fmt: skip
    return Finding(
        "ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S UTC, not behind the ledger", time.gmtime())
    )
