from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Error(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("agent", "observed_address", "addresses")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    agent: str
    observed_address: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, agent: _Optional[str] = ..., observed_address: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("kind", "call", "protocol", "timeout_ms", "payload", "more", "credit", "error", "hello")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Frame.Kind]
        HELLO: _ClassVar[Frame.Kind]
        PING: _ClassVar[Frame.Kind]
        PONG: _ClassVar[Frame.Kind]
        OPEN: _ClassVar[Frame.Kind]
        MESSAGE: _ClassVar[Frame.Kind]
        END: _ClassVar[Frame.Kind]
        FAILED: _ClassVar[Frame.Kind]
        CANCEL: _ClassVar[Frame.Kind]
        CREDIT: _ClassVar[Frame.Kind]
    UNKNOWN: Frame.Kind
    HELLO: Frame.Kind
    PING: Frame.Kind
    PONG: Frame.Kind
    OPEN: Frame.Kind
    MESSAGE: Frame.Kind
    END: Frame.Kind
    FAILED: Frame.Kind
    CANCEL: Frame.Kind
    CREDIT: Frame.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    kind: Frame.Kind
    call: int
    protocol: str
    timeout_ms: int
    payload: bytes
    more: bool
    credit: int
    error: Error
    hello: Hello
    def __init__(self, kind: _Optional[_Union[Frame.Kind, str]] = ..., call: _Optional[int] = ..., protocol: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., payload: _Optional[bytes] = ..., more: bool = ..., credit: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ...) -> None: ...
