"""How two directories come to hold the same: what to ask, what to answer, what to take.

Push-pull anti-entropy (Demers et al. 1987): both sides remember where they left off and compare the
fingerprints of what each has learnt since, so that only records the other lacks travel, either way.
Pure functions over a Directory; whoever calls them moves the messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmesh.core.announcement import SignedAnnouncement, author_of, read_announcement
from llmesh.core.directory import Cursor, Directory, Verdict, fingerprint
from llmesh.core.ids import PeerId
from llmesh.core.query import Answer, Get, News, Record, Search, Sync

__all__ = ["Learnt", "answer", "changes_to_name", "news_of", "take"]

BATCH = 48 << 10
"""Bytes of records in one message: fits one frame of the session."""
MAX_KNOWN = 16_384
"""Fingerprints named in one Sync, the newest; 128 KiB."""
MAX_FOUND = 100
"""Records in the answer to one Search."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """A record that was new to us, and the one that it replaced; a `renewal` says nothing new."""

    record: SignedAnnouncement
    renewal: bool
    before: SignedAnnouncement | None = None


def take(directory: Directory, record: Record, giver: PeerId, now: float) -> Learnt | None:
    """Put a record that `giver` sent into the directory; None if it was not new or is not wanted.

    A record that is not newer than the one held is not verified.  Raises ValidationFailed for one
    that is forged, malformed or expired.
    """
    author, sequence = author_of(record.payload)
    if directory.judge(author, sequence) is not Verdict.NEW:
        return None
    signed = read_announcement(record.payload, record.signature, now=now)
    before, held = directory.get(author, now), directory.held(author)
    if directory.add(signed, now, giver) is not Verdict.NEW:
        return None
    return Learnt(signed, before is not None and signed.announcement.renews(before.announcement), held)


def changes_to_name(directory: Directory, since: Cursor | None, now: float) -> tuple[bytes, ...]:
    """Fingerprints of what has changed here since we last compared with a peer; the first time, of all."""
    return tuple(fingerprint(record) for _, _, record in directory.changes(since, now))[-MAX_KNOWN:]


def answer(directory: Directory, query: Sync | Search | Get, asker: PeerId, now: float) -> Iterator[Answer]:
    """The messages that answer a query, made one after the other as they are sent."""
    match query:
        case Sync():
            yield from _answer_sync(directory, query, asker, now)
        case Search():
            yield from map(Answer, _batches(_found(directory, query, now)))
        case Get(wanted):
            held = [(hint, directory.get(hint.peer_id, now)) for hint in wanted]
            new = [
                record for hint, record in held if record and record.announcement.sequence >= hint.sequence
            ]
            yield from map(Answer, _batches(new))


def news_of(directory: Directory, wanted: Iterable[bytes]) -> Iterator[News]:
    """The records of these fingerprints that are still held, in messages."""
    held = [directory.by_fingerprint(mark) for mark in wanted]
    return map(News, _batches([record for record in held if record is not None]))


def _answer_sync(directory: Directory, sync: Sync, asker: PeerId, now: float) -> Iterator[Answer]:
    head, known = directory.head, frozenset(sync.known)
    wanted = tuple(mark for mark in sync.known if directory.by_fingerprint(mark) is None)
    # An asker that has been here before holds what it gave; one that starts anew may have lost it.
    here_before = sync.cursor is not None and sync.cursor.start == head.start
    missing = [
        (position, record)
        for position, giver, record in directory.changes(sync.cursor, now)
        if fingerprint(record) not in known and not (here_before and giver == asker)
    ]
    reached = 0
    for batch in _batches([record for _, record in missing]):
        reached += len(batch)
        yield Answer(batch, Cursor(head.start, missing[reached - 1][0]))
    yield Answer((), head, wanted)


def _found(directory: Directory, search: Search, now: float) -> list[SignedAnnouncement]:
    """One record a provider, in the order of the search."""
    limit = min(search.limit, MAX_FOUND)
    pairs = directory.search(search.name, search.max_fee, limit, now, search.model_id)
    peers = dict.fromkeys(announcement.peer_id for _, announcement in pairs)
    return [record for peer in peers if (record := directory.get(peer, now)) is not None]


def _batches(records: Sequence[SignedAnnouncement]) -> Iterator[tuple[Record, ...]]:
    """As many at a time as fit one message, at least one."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and size + len(record.payload) > BATCH:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(Record.of(record))
        size += len(record.payload)
    if batch:
        yield tuple(batch)
