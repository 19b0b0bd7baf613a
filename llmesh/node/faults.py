"""What can be wrong with a node as such, apart from the errors of requests (llmesh.errors)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["NodeStateError", "StartRefused", "lone_errors"]


class StartRefused(RuntimeError):
    """The node cannot start as it is configured; the text is one line that says what to do."""


class NodeStateError(RuntimeError):
    """A call that the node's present state does not allow: before start, after stop, a second start."""


@contextmanager
def lone_errors() -> Iterator[None]:
    """Raise the only error inside an exception group as itself, so that callers need no `except*`."""
    try:
        yield
    except BaseExceptionGroup as group:
        lone: BaseException = group
        while isinstance(lone, BaseExceptionGroup) and len(lone.exceptions) == 1:
            lone = lone.exceptions[0]
        if lone is group or isinstance(lone, BaseExceptionGroup):
            raise
        raise lone from lone.__cause__
