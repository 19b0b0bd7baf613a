"""The owner's socket: `owner.sock` in the data directory, which the system opens to its owner alone.

Whoever comes by it is the owner: the gateway asks them for no key, counts nothing, and serves routes
that are not on the network at all.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmesh.node.faults import StartRefused

__all__ = ["SOCKET", "fitting_path", "owner_socket"]

SOCKET = "owner.sock"
MAX_PATH = 100
"""Bytes of a path that every system takes for a Unix socket: macOS allows 103, Linux 107."""
_BACKLOG = 64


@contextmanager
def owner_socket(folder: Path) -> Iterator[socket.socket]:
    """The owner's socket of a held data directory, listening; one that was left behind is replaced.

    Raises StartRefused where the folder cannot hold one.
    """
    path = folder / SOCKET
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _listen(listener, path)
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _listen(listener: socket.socket, path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        with fitting_path(path.parent) as fitting:
            listener.bind(fitting)
        path.chmod(0o600)  # nobody can connect before `listen`
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        raise StartRefused(
            f"The owner's socket {path} cannot be made ({error.strerror or error}); give the node a"
            " --data-dir on a local file system."
        ) from None


@contextmanager
def fitting_path(folder: Path) -> Iterator[str]:
    """A path of the folder's socket that fits into a socket address while the block lasts.

    Where the folder's own path is too long it leads through a link in a private folder for the time.
    """
    path = (folder / SOCKET).absolute()
    if len(os.fsencode(path)) <= MAX_PATH:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="llmesh-") as private:
        link = Path(private, "d")
        link.symlink_to(path.parent, target_is_directory=True)
        yield str(link / SOCKET)
