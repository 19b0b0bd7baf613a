"""One worker process as its node sees it: frames go in, events come out, and it always ends.

The process gets no secrets (a short list of environment variables), a session of its own (Ctrl-C
in the node's terminal is not for it) and the end of its stdin as the sign that its node is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

import llmesh
from llmesh.core.framing import Splitter
from llmesh.errors import ValidationFailed
from llmesh.runtime.orders import Event
from llmesh.runtime.pipe import MAX_BODY, Garbage, decode_event

__all__ = ["WorkerEnded", "WorkerProcess", "open_worker"]

_log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-P", "-s", "-m", "llmesh.runtime.worker")
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_READ = 1 << 18
_KEPT_COMPLAINTS = 4_096
_END_SECONDS = 2.0


class WorkerEnded(Exception):
    """The process is gone, or what it says is of no use any more; the text says why."""


class WorkerProcess:
    """Frames to a worker and events from it, each used by one task."""

    def __init__(self, process: trio.Process) -> None:
        assert isinstance(process.stdin, trio.lowlevel.FdStream)  # noqa: S101 - all three are pipes
        assert isinstance(process.stdout, trio.lowlevel.FdStream)  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr
        self._splitter = Splitter(MAX_BODY)
        self._bodies: deque[bytes] = deque()
        self._complaints = b""
        self._silent = trio.Event()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def send(self, frame: bytes) -> None:
        """Raises WorkerEnded.  A cancel may leave half a frame behind: end the process after one."""
        try:
            await self._stdin.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WorkerEnded("it takes no orders any more") from None

    def send_nowait(self, frame: bytes) -> bool:
        """Whether a short frame went out whole, at once; to be asked only while nobody is in `send`."""
        if len(frame) > select.PIPE_BUF:  # the kernel takes one up to this size whole or not at all
            return False
        try:
            os.write(self._stdin.fileno(), frame)
        except (OSError, trio.ClosedResourceError):  # full or gone: `send` finds out which
            return False
        return True

    async def receive(self) -> tuple[int, Event]:
        """The next event.  Raises WorkerEnded at the end, and for what is no event."""
        try:
            while not self._bodies:
                data = await self._read()
                if not data:
                    raise WorkerEnded(await self._obituary())
                self._bodies.extend(self._splitter.feed(data))
            return decode_event(self._bodies.popleft())
        except (Garbage, ValidationFailed) as error:
            raise WorkerEnded(f"it broke the protocol: {error}") from None

    async def _read(self) -> bytes:
        """What there is on its stdout; a stream's own `receive_some` takes one more turn of the loop."""
        while True:
            await trio.lowlevel.wait_readable(self._stdout.fileno())
            with contextlib.suppress(BlockingIOError):
                return os.read(self._stdout.fileno(), _READ)

    async def drain_complaints(self) -> None:
        """Take what it writes to stderr as it comes, and keep the end of it; returns at its end."""
        while data := await self._stderr.receive_some(_KEPT_COMPLAINTS):
            self._complaints = (self._complaints + data)[-_KEPT_COMPLAINTS:]
        self._silent.set()

    def last_complaint(self) -> str:
        """The last line on its stderr, after a colon; empty if there was none."""
        lines = self._complaints.decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]!a}" if lines else ""

    async def end(self) -> None:
        """Kill the process and wait until it is gone."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_END_SECONDS):
                self._process.kill()
                await self._process.wait()
                await self.drain_complaints()
            for stream in (self._stdin, self._stdout, self._stderr):
                await stream.aclose()
        if self._complaints:
            _log.info("worker %d wrote: %s", self.pid, ascii(self._complaints.decode(errors="replace")))

    async def _obituary(self) -> str:
        with trio.move_on_after(_END_SECONDS):
            await self._process.wait()
            await self._silent.wait()
        code = self._process.returncode
        if code is None:
            return "it closed its output"
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it exited with code {code}"


@asynccontextmanager
async def open_worker() -> AsyncIterator[WorkerProcess]:
    """A worker that is killed and waited for when the block is left.  Raises OSError."""
    worker = WorkerProcess(
        await trio.lowlevel.open_process(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.drain_complaints)
            yield worker
            nursery.cancel_scope.cancel()
    finally:
        await worker.end()


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {
        "PYTHONPATH": str(Path(llmesh.__file__).parent.parent),
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # read as onnxruntime is loaded, before its own switch exists
    }
