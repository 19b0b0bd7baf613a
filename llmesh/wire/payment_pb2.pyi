from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PaidAttempt(_message.Message):
    __slots__ = ("request_id", "attempt", "quote")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    attempt: int
    quote: bytes
    def __init__(self, request_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., quote: _Optional[bytes] = ...) -> None: ...

class Confirm(_message.Message):
    __slots__ = ("model_id", "offer", "quote")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    model_id: bytes
    offer: bytes
    quote: bytes
    def __init__(self, model_id: _Optional[bytes] = ..., offer: _Optional[bytes] = ..., quote: _Optional[bytes] = ...) -> None: ...

class Reconcile(_message.Message):
    __slots__ = ("config", "binding", "best", "last", "lost", "deposit")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DEPOSIT_FIELD_NUMBER: _ClassVar[int]
    config: bytes
    binding: bytes
    best: bytes
    last: bytes
    lost: _containers.RepeatedCompositeFieldContainer[PaidAttempt]
    deposit: bytes
    def __init__(self, config: _Optional[bytes] = ..., binding: _Optional[bytes] = ..., best: _Optional[bytes] = ..., last: _Optional[bytes] = ..., lost: _Optional[_Iterable[_Union[PaidAttempt, _Mapping]]] = ..., deposit: _Optional[bytes] = ...) -> None: ...

class PaymentQuestion(_message.Message):
    __slots__ = ("confirm", "reconcile")
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    RECONCILE_FIELD_NUMBER: _ClassVar[int]
    confirm: Confirm
    reconcile: Reconcile
    def __init__(self, confirm: _Optional[_Union[Confirm, _Mapping]] = ..., reconcile: _Optional[_Union[Reconcile, _Mapping]] = ...) -> None: ...

class Confirmed(_message.Message):
    __slots__ = ("binding", "terms", "salt")
    BINDING_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    binding: bytes
    terms: bytes
    salt: bytes
    def __init__(self, binding: _Optional[bytes] = ..., terms: _Optional[bytes] = ..., salt: _Optional[bytes] = ...) -> None: ...

class Reconciled(_message.Message):
    __slots__ = ("best", "last", "charged", "running")
    BEST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    best: bytes
    last: bytes
    charged: _containers.RepeatedScalarFieldContainer[bytes]
    running: _containers.RepeatedCompositeFieldContainer[PaidAttempt]
    def __init__(self, best: _Optional[bytes] = ..., last: _Optional[bytes] = ..., charged: _Optional[_Iterable[bytes]] = ..., running: _Optional[_Iterable[_Union[PaidAttempt, _Mapping]]] = ...) -> None: ...

class PaymentAnswer(_message.Message):
    __slots__ = ("confirmed", "reconciled")
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    RECONCILED_FIELD_NUMBER: _ClassVar[int]
    confirmed: Confirmed
    reconciled: Reconciled
    def __init__(self, confirmed: _Optional[_Union[Confirmed, _Mapping]] = ..., reconciled: _Optional[_Union[Reconciled, _Mapping]] = ...) -> None: ...
