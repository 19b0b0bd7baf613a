"""The ledger's log: operations in the issuer's order, chained by hashes and signed, for anyone to check.

Balances are a cache of it: `verify` rebuilds them.  A member need not trust the issuer with its money
or with the past; it trusts it to be there, to leave nobody's operations out, and to keep honest time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmesh import crypto
from llmesh.core import fields, typed
from llmesh.core.books import Books, Changes, View
from llmesh.core.encoding import canonical_json
from llmesh.core.genesis import SignedGenesis
from llmesh.core.operations import SignedOperation, operation_from_json, operation_to_json
from llmesh.core.rules import apply
from llmesh.core.typed import Chain, Sign
from llmesh.errors import MeshError, ValidationFailed

__all__ = [
    "Entry", "Head", "SignedEntry", "append", "first_head", "follow", "forked", "ledger_time", "read_entry",
    "verify",
]  # fmt: skip

_DOMAIN = b"LLMESH Log"
_ENTRY = typed.type_hash("Entry(bytes32 record)")


@dataclass(frozen=True, slots=True)
class Head:
    """How far a log has come: its last entry's number, hash and time."""

    sequence: int
    hash: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation in its place: after `previous`, at the issuer's time `at`, leading to `result`."""

    sequence: int
    previous: bytes
    at: int
    operation: SignedOperation
    result: bytes


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """An entry as it is kept and sent: canonical JSON and 65 bytes of the issuer's signature over it."""

    payload: bytes
    signature: bytes
    entry: Entry

    @property
    def head(self) -> Head:
        """The log's head once this is its last entry."""
        return Head(self.entry.sequence, crypto.keccak256(self.payload), self.entry.at)


def first_head(genesis: SignedGenesis) -> Head:
    """The head of a log without entries."""
    return Head(0, genesis.hash, genesis.genesis.created_at)


def ledger_time(started_at: int, elapsed: float) -> int:
    """The issuer's time: the head's when it started, and the seconds it has been running since.

    So the waits of withdrawals pause while the issuer is away, and no jump of a clock ends one; `elapsed`
    is monotonic.
    """
    return started_at + max(0, int(elapsed))


def append(
    view: View, head: Head, operation: SignedOperation, at: int, sign: Sign
) -> tuple[SignedEntry, Changes]:
    """The next entry, by the issuer's key, and what it changes.

    Write both durably in one step before telling anybody.  Raises what `rules.apply` raises, and
    ValidationFailed for a time before the head's.
    """
    _check_time(head, at)
    changes = apply(view, operation, at)
    entry = Entry(head.sequence + 1, head.hash, at, operation, changes.hash)
    payload = canonical_json(
        {
            "at": entry.at,
            "operation": operation_to_json(operation),
            "previous": entry.previous.hex(),
            "result": entry.result.hex(),
            "sequence": entry.sequence,
        }
    )
    signature = sign(_digest(payload, view.genesis.chain))
    return SignedEntry(payload, signature, entry), changes


def follow(view: View, head: Head, signed: SignedEntry) -> Changes:
    """What an entry from the issuer changes, once it is known to be the next and to keep all rules.

    Raises ValidationFailed for anything else; the books stay as they are.
    """
    entry = signed.entry
    _check_signature(signed, view.genesis.chain)
    if (entry.sequence, entry.previous) != (head.sequence + 1, head.hash):
        raise ValidationFailed(f"Entry {entry.sequence} of the log does not follow entry {head.sequence}.")
    _check_time(head, entry.at)
    try:
        changes = apply(view, entry.operation, entry.at)
    except MeshError as error:
        raise ValidationFailed(f"Entry {entry.sequence} of the log breaks a rule: {error.message}") from None
    if changes.hash != entry.result:
        raise ValidationFailed(f"Entry {entry.sequence} of the log does not lead where it says.")
    return changes


def read_entry(payload: bytes, signature: bytes) -> SignedEntry:
    """An entry from anywhere; checks the form only.  Raises ValidationFailed."""
    record = fields.parse(payload, "An entry of the log")
    fields.exactly(record, {"at", "operation", "previous", "result", "sequence"})
    entry = Entry(
        fields.whole(record["sequence"]),
        fields.hexed(record["previous"], 32),
        fields.whole(record["at"]),
        operation_from_json(record["operation"]),
        fields.hexed(record["result"], 32),
    )
    return SignedEntry(payload, signature, entry)


def verify(genesis: SignedGenesis, records: Iterable[tuple[bytes, bytes]]) -> tuple[Books, Head]:
    """Rebuild the books from (payload, signature) pairs in their order.

    Raises ValidationFailed at the first byte that is not as it was written.  A log cut short is a valid
    one of an earlier time: compare the head.
    """
    books, head = Books(genesis), first_head(genesis)
    for payload, signature in records:
        signed = read_entry(payload, signature)
        books.take(follow(books, head, signed))
        head = signed.head
    return books, head


def forked(one: SignedEntry, other: SignedEntry, chain: Chain) -> bool:
    """Whether these two prove that the issuer wrote two histories.  Raises ValidationFailed if forged."""
    _check_signature(one, chain)
    _check_signature(other, chain)
    return one.entry.sequence == other.entry.sequence and one.payload != other.payload


def _check_time(head: Head, at: int) -> None:
    if at < head.at:
        raise ValidationFailed("The log's time does not run backwards.")


def _check_signature(signed: SignedEntry, chain: Chain) -> None:
    wanted = _digest(signed.payload, chain)
    if typed.signer_of(wanted, signed.signature, "an entry of the log") != chain.contract:
        raise ValidationFailed(f"Entry {signed.entry.sequence} of the log is not signed by the issuer.")


def _digest(payload: bytes, chain: Chain) -> bytes:
    return typed.digest(_DOMAIN, chain, typed.struct(_ENTRY, crypto.keccak256(payload)))
