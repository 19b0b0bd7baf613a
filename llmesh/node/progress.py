"""Progress of a model on its way, for a person: a bar in a terminal, nothing in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["Fetched", "Sent", "busy", "sending", "shown"]

Fetched: TypeAlias = Callable[[int, int, int], None]
"""Told bytes that are here, bytes in all, and from how many peers they come."""
Sent: TypeAlias = Callable[[int, int], None]
"""Told bytes that were sent, and bytes in all."""


@contextmanager
def shown(name: str) -> Iterator[Fetched]:
    """What to report to while a model is fetched; the bar is gone when the block is left."""
    sources = TextColumn("from {task.fields[sources]}")
    with _bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), sources) as bar:
        task = bar.add_task(escape(name), total=None, sources=0)

        def report(done: int, total: int, peers: int) -> None:
            bar.update(task, total=total, completed=done, sources=peers)

        yield report


@contextmanager
def sending(name: str) -> Iterator[Sent]:
    """What to report to while a model is sent; once it is, the node looks it over."""
    with _bar(DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(escape(name), total=None)

        def report(done: int, total: int) -> None:
            if done < total:
                bar.update(task, total=total, completed=done)
            else:
                bar.update(task, total=None, description=f"{escape(name)}: checking and loading")

        yield report


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A sign that something is done whose end cannot be foretold."""
    with _bar(TimeElapsedColumn()) as bar:
        bar.add_task(escape(what), total=None)
        yield


def _bar(*columns: ProgressColumn) -> Progress:
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
