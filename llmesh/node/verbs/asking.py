"""How a verb of the command line asks, shows the answer, and ends when it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llmesh.node.verbs.asked import Asked

if TYPE_CHECKING:
    from llmesh.node.desk import Desk

__all__ = ["as_text", "ask", "ask_node", "carry_out", "die_by_signals", "show"]

T = TypeVar("T")


def ask(asked: Asked, question: Callable[[Desk], Awaitable[T]]) -> T:
    """What the owner's desk answers: the running node, or its files."""
    from llmesh.node.desk import open_desk

    return carry_out(lambda: _answer(open_desk(asked.folder), question))


def ask_node(asked: Asked, question: Callable[[Desk], Awaitable[T]]) -> T:
    """What a running node answers."""
    return carry_out(lambda: _answer(asked.desk(), question))


async def _answer(opened: AbstractAsyncContextManager[Desk], question: Callable[[Desk], Awaitable[T]]) -> T:
    async with opened as desk:
        return await question(desk)


def carry_out(work: Callable[[], Awaitable[T]]) -> T:
    """Do it in an event loop; SIGINT or SIGTERM cancels it, and the process ends with 128 and its number."""
    import trio

    from llmesh.node.faults import lone_errors

    results: list[T] = []
    signalled: list[int] = []

    async def obey(signals: AsyncIterable[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if signalled:
                os._exit(128 + number)
            signalled.append(number)
            scope.cancel()

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, signals, nursery.cancel_scope)
                results.append(await work())
                nursery.cancel_scope.cancel()

    with lone_errors():
        trio.run(main)
    if not results:
        click.echo("llmesh: interrupted.", err=True)
        sys.exit(128 + signalled[0])
    return results[0]


def die_by_signals() -> None:
    """A verb that only reads and writes files is ended by a signal at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def show(told: dict[str, Any], asked: Asked, render: Callable[[dict[str, Any]], str]) -> None:
    """Print an answer, for a program or for a person."""
    click.echo(as_text(told) if asked.as_json else render(told))


def as_text(told: Any, indent: int | None = 2) -> str:
    """JSON; amounts are numbers."""
    return json.dumps(told, indent=indent, ensure_ascii=False, default=float)
