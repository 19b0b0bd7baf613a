"""Progress of a model being fetched, for a person: a bar in a terminal, a line in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from llmesh.mesh.download import Progress as Fetched
from llmesh.mesh.download import Report

__all__ = ["shown"]


@contextmanager
def shown(name: str) -> Iterator[Report]:
    """What to report to while a model is fetched; the bar is gone when the block is left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("from {task.fields[sources]}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, sources=0)

        def report(fetched: Fetched) -> None:
            bar.update(task, total=fetched.total, completed=fetched.done, sources=len(fetched.sources))

        yield report
