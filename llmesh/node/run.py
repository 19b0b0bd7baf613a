"""A node as a program: one trio.run, until a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterable

import trio

from llmesh.node.banner import banner, reachability_line
from llmesh.node.config import NodeConfig
from llmesh.node.faults import lone_errors
from llmesh.node.open import open_node
from llmesh.node.running import Node
from llmesh.node.telemetry import log_to_stderr

__all__ = ["run_node"]


def run_node(config: NodeConfig) -> None:
    """Run until SIGINT or SIGTERM; a second signal ends the process at once.

    Raises StartRefused, or a MeshError for a bad model, where the node cannot start as configured.
    """
    log_to_stderr(config.log_level)
    with lone_errors():
        trio.run(_main, config)


async def _main(config: NodeConfig) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as running:
                nursery.start_soon(_obey, signals, running)
                async with open_node(config) as node:
                    await _tell(node)
            nursery.cancel_scope.cancel()


async def _obey(signals: AsyncIterable[int], running: trio.CancelScope) -> None:
    async for number in signals:
        if running.cancel_called:
            os._exit(128 + number)  # asked twice: the system takes back what is still open
        running.cancel()


async def _tell(node: Node) -> None:
    _say(banner(await node.status(), node.url, node.offers))
    _say(reachability_line(await node.reachable_at(), node.peer_id))
    await trio.sleep_forever()


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
