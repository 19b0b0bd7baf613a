from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Record(_message.Message):
    __slots__ = ("payload", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("start", "position")
    START_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    start: int
    position: int
    def __init__(self, start: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Sync(_message.Message):
    __slots__ = ("cursor", "known")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    known: bytes
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., known: _Optional[bytes] = ...) -> None: ...

class Search(_message.Message):
    __slots__ = ("name", "max_fee", "limit", "model_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_FEE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    max_fee: bytes
    limit: int
    model_id: bytes
    def __init__(self, name: _Optional[str] = ..., max_fee: _Optional[bytes] = ..., limit: _Optional[int] = ..., model_id: _Optional[bytes] = ...) -> None: ...

class Hint(_message.Message):
    __slots__ = ("peer_id", "sequence")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    sequence: int
    def __init__(self, peer_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Get(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: _containers.RepeatedCompositeFieldContainer[Hint]
    def __init__(self, wanted: _Optional[_Iterable[_Union[Hint, _Mapping]]] = ...) -> None: ...

class News(_message.Message):
    __slots__ = ("records", "hints")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    hints: _containers.RepeatedCompositeFieldContainer[Hint]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., hints: _Optional[_Iterable[_Union[Hint, _Mapping]]] = ...) -> None: ...

class Parting(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Query(_message.Message):
    __slots__ = ("sync", "search", "get", "news", "parting")
    SYNC_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    PARTING_FIELD_NUMBER: _ClassVar[int]
    sync: Sync
    search: Search
    get: Get
    news: News
    parting: Parting
    def __init__(self, sync: _Optional[_Union[Sync, _Mapping]] = ..., search: _Optional[_Union[Search, _Mapping]] = ..., get: _Optional[_Union[Get, _Mapping]] = ..., news: _Optional[_Union[News, _Mapping]] = ..., parting: _Optional[_Union[Parting, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("records", "cursor", "wanted")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    cursor: Cursor
    wanted: bytes
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., cursor: _Optional[_Union[Cursor, _Mapping]] = ..., wanted: _Optional[bytes] = ...) -> None: ...
