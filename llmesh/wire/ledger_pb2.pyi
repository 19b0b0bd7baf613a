from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LedgerQuestion(_message.Message):
    __slots__ = ("swarm", "genesis", "submit", "follow")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    genesis: LedgerGenesis
    submit: LedgerSubmit
    follow: LedgerFollow
    def __init__(self, swarm: _Optional[bytes] = ..., genesis: _Optional[_Union[LedgerGenesis, _Mapping]] = ..., submit: _Optional[_Union[LedgerSubmit, _Mapping]] = ..., follow: _Optional[_Union[LedgerFollow, _Mapping]] = ...) -> None: ...

class LedgerGenesis(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LedgerSubmit(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: bytes
    def __init__(self, operation: _Optional[bytes] = ...) -> None: ...

class LedgerFollow(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class LedgerIntroduction(_message.Message):
    __slots__ = ("payload", "signature", "issuer", "height")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    issuer: bytes
    height: int
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., issuer: _Optional[bytes] = ..., height: _Optional[int] = ...) -> None: ...

class LedgerEntered(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("payload", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class LedgerAnswer(_message.Message):
    __slots__ = ("introduction", "entered", "entry")
    INTRODUCTION_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    introduction: LedgerIntroduction
    entered: LedgerEntered
    entry: LedgerEntry
    def __init__(self, introduction: _Optional[_Union[LedgerIntroduction, _Mapping]] = ..., entered: _Optional[_Union[LedgerEntered, _Mapping]] = ..., entry: _Optional[_Union[LedgerEntry, _Mapping]] = ...) -> None: ...
