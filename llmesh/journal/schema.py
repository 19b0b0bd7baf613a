"""The journal's tables, as steps from each version of the schema to the next; and who owns the file.

A step that has been released is never changed; a new version is a new step.  Each runs in a
transaction of its own with its version number, so a crash leaves one version or the next.
"""

from __future__ import annotations

import apsw

from llmesh.core.ids import PeerId
from llmesh.errors import Conflict, ValidationFailed

__all__ = [
    "APPLICATION",
    "VERSION",
    "begin_anew",
    "channel_salt",
    "check_identity",
    "count_commits",
    "migrate",
]

APPLICATION = 0x4C4C4D4A
"""SQLite's application id of a journal: the letters LLMJ."""

_AMOUNT = "BLOB NOT NULL CHECK (length({0}) = 16)"
_SIDE = "TEXT NOT NULL CHECK (side IN ('payer', 'provider'))"


def _amount(name: str) -> str:
    return f"{name} {_AMOUNT.format(name)}"


_FIRST = f"""
CREATE TABLE journal (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    owner TEXT NOT NULL,                     -- peer id of the node
    commits INTEGER NOT NULL,                -- transactions since the file was made
    failures INTEGER NOT NULL                -- of these, the ones that only cover up a failed one
) STRICT;

CREATE TABLE channel (
    side {_SIDE},
    id BLOB NOT NULL CHECK (length(id) = 32),
    peer TEXT NOT NULL,
    config BLOB NOT NULL,
    {_amount("balance")},
    {_amount("claimed")},
    {_amount("withdrawing")},
    {_amount("charged")},
    best BLOB NOT NULL,                      -- signed voucher; empty before the first
    last BLOB NOT NULL,                      -- signed receipt; empty before the first
    good INTEGER NOT NULL,
    broken TEXT NOT NULL,
    PRIMARY KEY (side, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE reservation (
    channel BLOB NOT NULL CHECK (length(channel) = 32),
    request TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    {_amount("quote")},
    since REAL NOT NULL,
    PRIMARY KEY (channel, request, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE receipt (
    number INTEGER PRIMARY KEY,
    side {_SIDE},
    peer TEXT NOT NULL,
    request TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    model TEXT NOT NULL,
    {_amount("fee")},
    issued REAL NOT NULL,
    signed BLOB NOT NULL,
    output BLOB                              -- null once forgotten, or if it was never kept
) STRICT;
CREATE UNIQUE INDEX receipt_attempt ON receipt (request, attempt, side, peer);
CREATE INDEX receipt_issued ON receipt (issued);
CREATE INDEX receipt_output ON receipt (issued) WHERE output IS NOT NULL;

CREATE TABLE mark (
    purse TEXT NOT NULL,
    day INTEGER NOT NULL,
    {_amount("spent")},
    PRIMARY KEY (purse, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE key (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    label TEXT NOT NULL,
    scopes TEXT NOT NULL,                    -- sorted, a space between two
    created REAL NOT NULL,
    expires REAL,
    revoked REAL,
    daily_budget BLOB CHECK (length(daily_budget) = 16)
) STRICT, WITHOUT ROWID;

CREATE TABLE intent (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    account TEXT NOT NULL,
    nonce INTEGER,
    body BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'dead')),
    created REAL NOT NULL,
    attempts INTEGER NOT NULL,
    next_time REAL NOT NULL,
    last_error TEXT NOT NULL,
    reference BLOB NOT NULL                  -- what the last sending is known by, such as a hash
) STRICT, WITHOUT ROWID;
CREATE INDEX intent_due ON intent (kind, next_time) WHERE state = 'waiting';
CREATE INDEX intent_over ON intent (created) WHERE state <> 'waiting';
CREATE TABLE nonce (account TEXT PRIMARY KEY, next INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

_WEBHOOKS = """
CREATE TABLE webhook (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    events TEXT NOT NULL,                    -- sorted, a space between two
    secret TEXT NOT NULL,
    previous TEXT NOT NULL,                  -- signs too until previous_until; empty for none
    previous_until REAL NOT NULL,
    created REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX intent_account ON intent (kind, account, created);
"""

_OFFERS = f"""
CREATE TABLE offer (
    number INTEGER PRIMARY KEY,              -- the latest last
    model TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    description TEXT NOT NULL,
    licence TEXT NOT NULL,
    {_amount("fee")},
    graph TEXT NOT NULL,                     -- file of the bundle that is run
    UNIQUE (name, version)
) STRICT;
"""

_SALT = """
ALTER TABLE journal ADD COLUMN salt BLOB NOT NULL CHECK (length(salt) = 32)
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000';
-- In the place of a file that was lost a new one must not go on with its channels.
UPDATE journal SET salt = randomblob(32) WHERE commits = 0;
"""

_STEPS: tuple[str, ...] = (_FIRST, _WEBHOOKS, _OFFERS, _SALT)

VERSION = len(_STEPS)
"""The version of the schema that this program writes."""


def check_identity(db: apsw.Connection, owner: PeerId) -> int:
    """The schema version of an open file, 0 for an empty one; nothing is changed.

    Raises ValidationFailed for another program's database, Conflict for a journal of a newer
    program or of another node.
    """
    application, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    if not application and not version and not _pragma(db, "schema_version"):
        return 0
    if application != APPLICATION:
        raise ValidationFailed("It is a database, but not the journal of an LLMESH node.")
    if version > VERSION:
        raise Conflict(
            f"It was written by a newer LLMESH (schema {version}; this one knows up to {VERSION}).",
            next_step="Install that version or a later one.",
        )
    found = db.execute("SELECT owner FROM journal").get
    if found != owner:
        raise Conflict(f"It is the journal of node {found}, not of {owner}.")
    return version


def migrate(db: apsw.Connection, version: int, owner: PeerId) -> None:
    """Bring a file of an earlier version, or an empty one, to the present version, step by step."""
    for number, step in enumerate(_STEPS[version:], start=version + 1):
        with db:
            db.execute(step)
            if number == 1:
                db.execute("INSERT INTO journal VALUES (1, ?, 0, 0)", (owner,))
                db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {number}")


def count_commits(db: apsw.Connection) -> int:
    """How many transactions made this file what it is: a later history has more."""
    commits: int = db.execute("SELECT commits FROM journal").get
    return commits


def channel_salt(db: apsw.Connection) -> bytes:
    """32 bytes that channels carry by which this node is paid."""
    found: bytes = db.execute("SELECT salt FROM journal").get
    return found


def begin_anew(db: apsw.Connection, owner: PeerId, salt: bytes) -> None:
    """Let a copy of an earlier moment be used again though nobody knows what came after it.

    What this node signed since on the channels of then is forgotten: it takes others from now on, by a
    salt that was never used.  An operation that waited without its nonce may have been done meanwhile.
    """
    migrate(db, check_identity(db, owner), owner)
    with db:
        db.execute("UPDATE journal SET salt = ?", (salt,))
        db.execute(
            "UPDATE intent SET state = 'dead', last_error = ?"
            " WHERE state = 'waiting' AND nonce IS NOT NULL AND reference = x''",
            ("The journal was restored, and nobody knows whether this was done. Ask for it again if not.",),
        )


def _pragma(db: apsw.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").get
    return value
