"""A model on its way to the node: bytes, a file or a folder, sent as a form piece by piece."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

import anyio.to_thread

from llmesh.errors import ValidationFailed

__all__ = ["Progress", "Upload"]

Progress: TypeAlias = Callable[[int, int], None]
"""Told bytes sent so far and in all."""

_PIECE = 256 * 1024
_SPOOLED = 8 << 20


class Upload:
    """One form (RFC 7578) with the parts `metadata` and `file`; use it as a `with` block.

    A folder is packed into a temporary archive first.
    """

    def __init__(
        self, model: bytes | str | Path, metadata: Mapping[str, Any], progress: Progress | None
    ) -> None:
        """Raises ValidationFailed for metadata that JSON cannot hold."""
        self._model = model if isinstance(model, bytes) else Path(model)
        self._progress = progress
        self._stack = ExitStack()
        self._file: IO[bytes] = io.BytesIO()
        self._size = 0
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="metadata"\r\n'
            f"Content-Type: application/json\r\n\r\n{_json(metadata)}\r\n"
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n'
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    async def __aenter__(self) -> Self:
        """Raises ValidationFailed for a path that cannot be read."""
        try:
            self._file = self._stack.enter_context(await anyio.to_thread.run_sync(self._open))
        except OSError as error:
            raise ValidationFailed(f"{self._model!s} cannot be read: {error.strerror}.") from None
        self._size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def length(self) -> int:
        """Bytes of the whole form."""
        return len(self._head) + self._size + len(self._tail)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The form, to be sent once."""
        yield self._head
        sent = 0
        while piece := await anyio.to_thread.run_sync(self._file.read, _PIECE):
            yield piece
            sent += len(piece)
            if self._progress is not None:
                self._progress(sent, self._size)
        yield self._tail

    def _open(self) -> IO[bytes]:
        if isinstance(self._model, bytes):
            return io.BytesIO(self._model)
        if self._model.is_dir():
            return _packed(self._model)
        return self._model.open("rb")


def _packed(folder: Path) -> IO[bytes]:
    """The folder as a tar, in memory while it is small; links are followed, as they would not be taken."""
    spooled = tempfile.SpooledTemporaryFile(max_size=_SPOOLED)  # noqa: SIM115 - the caller closes it
    with tarfile.open(fileobj=spooled, mode="w", dereference=True) as archive:
        archive.add(folder, arcname=".")
    return spooled


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationFailed(f"The metadata cannot be written as JSON: {error}.") from None
