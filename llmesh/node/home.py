"""Home: the data directory of one node, held by one process at a time.

It keeps the identity, the account's key, the sequence number of announcements, the port found at an
earlier start and, while the node runs, `node.json`: where other programs find it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmesh import crypto
from llmesh.core.encoding import Json
from llmesh.core.ids import PeerId
from llmesh.node.faults import StartRefused
from llmesh.node.files import write_durably
from llmesh.node.identity import load_seed

__all__ = ["ACCOUNT", "IDENTITY", "JOURNAL", "LEDGER", "MEMBERS", "Home", "held", "open_home"]

IDENTITY = "identity.key"
ACCOUNT = "account.key"
JOURNAL = "journal.db"
LEDGER = "ledger.db"
MEMBERS = "members"
MOST_MEMBERS = 32
"""Addresses of members that are remembered."""

_log = logging.getLogger(__name__)


class Home:
    """An open data directory; only `open_home` makes one, because it holds the lock."""

    def __init__(self, folder: Path, seed: bytes, account_seed: bytes) -> None:
        self.folder = folder
        self.seed = seed
        self.account_seed = account_seed
        self.peer_id = PeerId(crypto.identity_of(seed))
        self._sequence = _number(folder / "sequence")

    @property
    def key_secret(self) -> bytes:
        """What the digests of the gateway's keys are made with."""
        return crypto.derived_secret(self.seed, b"llmesh keys")

    def next_sequence(self) -> int:
        """A number above every earlier one, over restarts too.  Blocks for the disk.

        Where none is kept it goes on from the clock: announcements are made far less than once a
        second, so an identity that was moved without its number is still above what it said before.
        A number that cannot be kept is good all the same: a node that finds peers with a later one
        of its own goes on from there.
        """
        self._sequence = int(time.time()) if self._sequence is None else self._sequence + 1
        try:
            write_durably(self.folder / "sequence", b"%d\n" % self._sequence)
        except OSError as error:
            _log.error("The number of the latest announcement cannot be kept: %s", error)
        return self._sequence

    @property
    def members(self) -> tuple[str, ...]:
        """Where members of this node's swarm were when it joined: addresses with peer ids."""
        try:
            return tuple((self.folder / MEMBERS).read_text("utf-8").split())
        except (OSError, UnicodeDecodeError):
            return ()

    def remember_members(self, addresses: Iterable[str]) -> None:
        """Keep the first few of them for later starts."""
        kept = list(addresses)[:MOST_MEMBERS]
        write_durably(self.folder / MEMBERS, "".join(f"{text}\n" for text in kept).encode())

    def remembered_port(self) -> int | None:
        """The port that an earlier start found free."""
        return _number(self.folder / "port")

    def remember_port(self, port: int) -> None:
        """Keep the port for the next start."""
        write_durably(self.folder / "port", b"%d\n" % port)

    @contextmanager
    def published(self, facts: dict[str, Json]) -> Iterator[None]:
        """While inside, `node.json` says where the node is to be found."""
        path = self.folder / "node.json"
        write_durably(path, json.dumps(facts, indent=2).encode() + b"\n")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a data directory, made if it is not there.

    Raises StartRefused if another process holds it, or for a folder that cannot be used; a process
    that is refused has written nothing into another's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartRefused(
            f"The data directory {folder} cannot be used ({error.strerror}); choose another with --data-dir."
        ) from None
    try:
        _take(lock, folder)
        try:
            yield
        finally:
            os.ftruncate(lock, 0)
    finally:
        os.close(lock)  # gives the lock back, as the end of the process does


@contextmanager
def open_home(folder: Path) -> Iterator[Home]:
    """Hold the data directory with the node's keys in it, made if they are not there.

    Raises StartRefused as `held` does, and for a key that cannot be used.
    """
    with held(folder):
        yield Home(folder, load_seed(folder / IDENTITY), load_seed(folder / ACCOUNT))


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise StartRefused(
            f"The data directory {folder} is held by another node (process {holder});"
            " stop that one, or give this one its own --data-dir."
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() and len(text) < 20 else None
