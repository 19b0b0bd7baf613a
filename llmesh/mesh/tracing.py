"""Which trace the present task works for; tasks that it starts work for the same.

A gateway's request sets it, and so does an attempt that a peer sent; log lines and attempts carry it on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from llmesh.core.trace import Trace

__all__ = ["current_trace", "follow_trace", "new_trace", "traced"]

_current: ContextVar[Trace | None] = ContextVar("llmesh_trace", default=None)


def current_trace() -> Trace | None:
    """What this task works for, if anybody said."""
    return _current.get()


def new_trace() -> Trace:
    """A story that begins here."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


def follow_trace(trace: Trace) -> Trace:
    """From here on, for the whole task, be a step of this story; that step."""
    step = trace.step(secrets.token_hex(8))
    _current.set(step)
    return step


@contextmanager
def traced(trace: Trace | None) -> Iterator[Trace]:
    """Within the block be a step of this story, or of the task's own, or of a new one."""
    base = trace or current_trace() or new_trace()
    step = base.step(secrets.token_hex(8))
    token = _current.set(step)
    try:
        yield step
    finally:
        _current.reset(token)
