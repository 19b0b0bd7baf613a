"""Identity: the 32 bytes of a key, kept in a file only its owner can read.

One is the Ed25519 seed that names the node, another the secp256k1 key of its account.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from llmesh.node.faults import StartRefused
from llmesh.node.files import write_durably

__all__ = ["load_seed"]

_SEED = re.compile(rb"[0-9a-f]{64}\n?\Z")


def load_seed(path: Path) -> bytes:
    """The seed in the file, 64 hex digits; a new one is made where there is no file.

    Raises StartRefused for a file that others may read or that is not such a key; it is never
    replaced, since the node's name, money and stake hang on it.
    """
    try:
        if not os.path.lexists(path):  # a link that leads nowhere is a key out of reach
            write_durably(path, secrets.token_hex(32).encode() + b"\n")
        mode, text = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise StartRefused(
            f"The key {path} cannot be read or made ({error.strerror});"
            " correct that, or use another --data-dir."
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise StartRefused(f"The key {path} can be read by others; correct that with: chmod 600 '{path}'")
    if not _SEED.match(text):
        raise StartRefused(
            f"The key {path} is damaged: restore it from a copy, or move it away to start as a new node."
        )
    return bytes.fromhex(text.decode())
