"""Which threads run a node in their event loop: to block one of these for its node would be for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["refuse_own_node", "serving"]

_threads: set[int] = set()


@contextmanager
def serving() -> Iterator[None]:
    """While inside, this thread's event loop runs a node."""
    thread = threading.get_ident()
    _threads.add(thread)
    try:
        yield
    finally:
        _threads.discard(thread)


def refuse_own_node(what: str) -> None:
    """Raise RuntimeError where this thread would wait for a node that it runs itself."""
    if threading.get_ident() in _threads:
        raise RuntimeError(
            f"{what} waits for the answer, and a node runs in this very event loop: it would wait for ever."
            f" Call it from another thread, such as by trio.to_thread.run_sync."
        )
