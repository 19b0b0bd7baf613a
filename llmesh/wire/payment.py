"""Codec of /llmesh/payment/1.0.0: core's questions and answers about money to protobuf bytes and back.

Decoding checks sizes and counts; whether anything is signed by whom it should be is core's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from llmesh.core.amount import Amount
from llmesh.core.binding import read_binding
from llmesh.core.channel import MAX_ATTEMPTS, Sync, SyncRequest
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.payment import Answer, Confirm, Confirmed, Question, Reconcile
from llmesh.core.receipt import SignedReceipt, read_receipt
from llmesh.core.terms import read_terms
from llmesh.core.voucher import SignedVoucher, read_config, read_voucher
from llmesh.errors import ValidationFailed
from llmesh.wire import payment_pb2 as pb

__all__ = ["MAX_MESSAGE", "decode_answer", "decode_question", "encode_answer", "encode_question"]

MAX_MESSAGE = 64 << 10
"""Bytes of one question or answer."""

_M = TypeVar("_M", bound=Message)


def encode_question(question: Question) -> bytes:
    """The opener's message."""
    if isinstance(question, Confirm):
        quote = _amount_bytes(question.quote)
        confirm = pb.Confirm(model_id=bytes.fromhex(question.model), offer=question.offer, quote=quote)
        return pb.PaymentQuestion(confirm=confirm).SerializeToString()
    request = question.request
    reconcile = pb.Reconcile(
        config=question.config.packed,
        binding=question.binding.packed,
        best=_packed(request.best),
        last=_packed(request.last),
        lost=[_attempt_to_wire(attempt) for attempt in request.lost],
        deposit=_amount_bytes(question.deposit),
    )
    return pb.PaymentQuestion(reconcile=reconcile).SerializeToString()


def decode_question(data: bytes) -> Question:
    """What a peer asks.  Raises ValidationFailed."""
    message = _parse(pb.PaymentQuestion, data)
    match message.WhichOneof("kind"):
        case "confirm":
            asked = message.confirm
            if len(asked.model_id) != 32 or len(asked.offer) != 32:
                raise ValidationFailed("A model and an offer are named by 32 bytes each.")
            return Confirm(ModelId(asked.model_id.hex()), asked.offer, _amount(asked.quote))
        case "reconcile":
            told = message.reconcile
            lost = tuple(_attempt(one) for one in _few(told.lost))
            request = SyncRequest(_voucher(told.best), _receipt(told.last), lost)
            binding = read_binding(told.binding)
            return Reconcile(read_config(told.config), binding, request, _amount(told.deposit))
        case _:
            raise ValidationFailed("A question about payment is of no known kind.")


def encode_answer(answer: Answer) -> bytes:
    """The handler's message."""
    if isinstance(answer, Confirmed):
        confirmed = pb.Confirmed(binding=answer.binding.packed, terms=answer.terms.packed, salt=answer.salt)
        return pb.PaymentAnswer(confirmed=confirmed).SerializeToString()
    reconciled = pb.Reconciled(
        best=_packed(answer.best),
        last=_packed(answer.last),
        charged=[receipt.packed for receipt in answer.charged],
        running=[_attempt_to_wire(attempt, quote) for attempt, quote in answer.running],
    )
    return pb.PaymentAnswer(reconciled=reconciled).SerializeToString()


def decode_answer(data: bytes) -> Answer:
    """What a peer answers.  Raises ValidationFailed."""
    message = _parse(pb.PaymentAnswer, data)
    match message.WhichOneof("kind"):
        case "confirmed":
            confirmed = message.confirmed
            if len(confirmed.salt) != 32:
                raise ValidationFailed("The salt of a channel takes 32 bytes.")
            return Confirmed(read_binding(confirmed.binding), read_terms(confirmed.terms), confirmed.salt)
        case "reconciled":
            told = message.reconciled
            charged = tuple(read_receipt(packed) for packed in _few(told.charged))
            running = tuple((_attempt(one), _amount(one.quote)) for one in _few(told.running))
            return Sync(_voucher(told.best), _receipt(told.last), charged, running)
        case _:
            raise ValidationFailed("An answer about payment is of no known kind.")


_T = TypeVar("_T")


def _few(items: Iterable[_T]) -> list[_T]:
    found = list(items)
    if len(found) > MAX_ATTEMPTS:
        raise ValidationFailed(f"{len(found)} attempts are more than the {MAX_ATTEMPTS} of one message.")
    return found


def _attempt_to_wire(attempt: AttemptId, quote: Amount | None = None) -> pb.PaidAttempt:
    price = b"" if quote is None else _amount_bytes(quote)
    return pb.PaidAttempt(request_id=bytes.fromhex(attempt.request), attempt=attempt.number, quote=price)


def _attempt(message: pb.PaidAttempt) -> AttemptId:
    if len(message.request_id) != 16 or message.attempt < 1:
        raise ValidationFailed("An attempt has 16 bytes of request id and counts from 1.")
    return AttemptId(RequestId(message.request_id.hex()), message.attempt)


def _packed(signed: SignedVoucher | SignedReceipt | None) -> bytes:
    return signed.packed if signed else b""


def _voucher(packed: bytes) -> SignedVoucher | None:
    return read_voucher(packed) if packed else None


def _receipt(packed: bytes) -> SignedReceipt | None:
    return read_receipt(packed) if packed else None


def _amount_bytes(amount: Amount) -> bytes:
    return amount.micro.to_bytes(16, "big").lstrip(b"\0")


def _amount(data: bytes) -> Amount:
    if len(data) > 16:
        raise ValidationFailed("An amount takes at most 16 bytes.")
    return Amount(int.from_bytes(data, "big"))


def _parse(kind: type[_M], data: bytes) -> _M:
    if len(data) > MAX_MESSAGE:
        raise ValidationFailed(f"A message of {len(data)} bytes is over the {MAX_MESSAGE} of the protocol.")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ValidationFailed(f"{len(data)} bytes are not a {kind.__name__} of the payments.") from None
