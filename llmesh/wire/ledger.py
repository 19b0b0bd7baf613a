"""Codec of /llmesh/ledger/1.0.0: core's questions and answers to protobuf bytes and back.

Decoding checks every bound that protobuf lacks; whatever is wrong is one ValidationFailed.  Whether
entries are genuine and follow one another is for `core.ledgerlog` to say.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from llmesh.core.binding import read_binding
from llmesh.core.encoding import canonical_json
from llmesh.core.fields import MAX_RECORD, parse
from llmesh.core.genesis import read_genesis
from llmesh.core.ledgerlog import SignedEntry, read_entry
from llmesh.core.operations import operation_from_json, operation_to_json
from llmesh.core.swarm import Answer, AskGenesis, Entered, Follow, Introduction, Question, Submit
from llmesh.errors import ValidationFailed
from llmesh.wire import ledger_pb2 as pb

__all__ = ["MAX_MESSAGE", "decode_answer", "decode_question", "encode_answer", "encode_question"]

MAX_MESSAGE = MAX_RECORD + 1024
"""Bytes of one question or answer."""
_SWARM = 32

_M = TypeVar("_M", bound=Message)


def encode_question(question: Question) -> bytes:
    """The opener's message."""
    message = pb.LedgerQuestion(swarm=question.swarm)
    match question:
        case AskGenesis():
            message.genesis.SetInParent()
        case Submit(_, operation):
            message.submit.operation = canonical_json(operation_to_json(operation))
        case Follow(_, after):
            message.follow.SetInParent()
            message.follow.after = after
    return message.SerializeToString()


def decode_question(data: bytes) -> Question:
    """What a peer asks.  Raises ValidationFailed."""
    message = _parse(pb.LedgerQuestion, data)
    swarm = message.swarm
    if len(swarm) != _SWARM:
        raise ValidationFailed(f"A swarm is named by {_SWARM} bytes.")
    match message.WhichOneof("kind"):
        case "genesis":
            return AskGenesis(swarm)
        case "submit":
            return Submit(swarm, operation_from_json(parse(message.submit.operation, "An operation")))
        case "follow":
            return Follow(swarm, message.follow.after)
        case _:
            raise ValidationFailed("A question about a ledger is of no known kind.")


def encode_answer(answer: Answer) -> bytes:
    """One message of the handler."""
    match answer:
        case Introduction(genesis, height, issuer):
            packed = issuer.packed if issuer else b""
            said = pb.LedgerIntroduction(
                payload=genesis.payload, signature=genesis.signature, issuer=packed, height=height
            )
            return pb.LedgerAnswer(introduction=said).SerializeToString()
        case Entered(sequence):
            return pb.LedgerAnswer(entered=pb.LedgerEntered(sequence=sequence)).SerializeToString()
        case SignedEntry(payload, signature):
            entry = pb.LedgerEntry(payload=payload, signature=signature)
            return pb.LedgerAnswer(entry=entry).SerializeToString()


def decode_answer(data: bytes) -> Answer:
    """What a peer answers.  Raises ValidationFailed."""
    message = _parse(pb.LedgerAnswer, data)
    match message.WhichOneof("kind"):
        case "introduction":
            said = message.introduction
            issuer = read_binding(said.issuer) if said.issuer else None
            return Introduction(read_genesis(said.payload, said.signature), said.height, issuer)
        case "entered":
            return Entered(message.entered.sequence)
        case "entry":
            return read_entry(message.entry.payload, message.entry.signature)
        case _:
            raise ValidationFailed("An answer about a ledger is of no known kind.")


def _parse(kind: type[_M], data: bytes) -> _M:
    if len(data) > MAX_MESSAGE:
        raise ValidationFailed(f"A message of {len(data)} bytes is over the {MAX_MESSAGE} of the protocol.")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValidationFailed(f"{len(data)} bytes are not a {kind.__name__}.") from None
