"""Tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["facts", "table"]

_WIDTH = 10_000
"""Columns where the output is no terminal: enough that no line breaks."""

_SHORT = 24
"""Characters of a column that is never folded."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """Rows under their heads; a column of numbers, or whose head has MESH, is set to the right.

    Where the terminal is too narrow, long columns such as ids are folded and the others are not.
    """
    lines = list(rows)
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head, *cells in zip(heads, *lines, strict=True):
        justify: Literal["right", "left"] = (
            "right" if "MESH" in head or all(map(_is_number, cells)) else "left"
        )
        short = max(map(len, (head, *cells))) <= _SHORT
        shown.add_column(head, justify=justify, overflow="fold", no_wrap=short)
    for row in lines:
        shown.add_row(*(Text(cell) for cell in row))  # what others have named must not be read as markup
    return _text(shown)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdecimal()


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of each."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(Text(name), Text(value))
    return _text(shown)


def _text(shown: Table) -> str:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
