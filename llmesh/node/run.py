"""A node as a program: one trio.run, until a signal ends it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import AsyncIterable
from contextlib import suppress
from pathlib import Path

import trio

from llmesh.errors import MeshError, ModelNotFound
from llmesh.node.banner import banner, reachability_line
from llmesh.node.config import NodeConfig
from llmesh.node.faults import lone_errors
from llmesh.node.open import open_node
from llmesh.node.progress import shown
from llmesh.node.running import Node
from llmesh.node.telemetry import log_to_stderr
from llmesh.node.values import Replication

__all__ = ["run_node"]

REPLICATION_PAUSE = 2.0
MAX_REPLICATION_PAUSE = 60.0
"""Seconds between tries to fetch a model that nobody gives yet."""


def run_node(config: NodeConfig) -> None:
    """Run until SIGINT or SIGTERM; a second signal ends the process at once.

    Raises StartRefused, or a MeshError for a bad model, where the node cannot start as configured.
    """
    log_to_stderr(config.log_level, config.log_format)
    with lone_errors():
        trio.run(_main, config)


async def _main(config: NodeConfig) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as running:
                nursery.start_soon(_obey, signals, running)
                async with open_node(config) as node, trio.open_nursery() as copying:
                    for replication in config.replicate:
                        copying.start_soon(_replicate, node, replication)
                    await _tell(node, config.data_dir)
            nursery.cancel_scope.cancel()


async def _obey(signals: AsyncIterable[int], running: trio.CancelScope) -> None:
    async for number in signals:
        if running.cancel_called:
            os._exit(128 + number)  # asked twice: the system takes back what is still open
        running.cancel()


async def _replicate(node: Node, wanted: Replication) -> None:
    """Fetch a model and serve it; until somebody offers it, look again now and then."""
    pause = REPLICATION_PAUSE
    while True:
        try:
            with shown(str(wanted.ref)) as report:
                model = await node.replicate(
                    wanted.ref,
                    wanted.fee,
                    lambda so_far: report(so_far.done, so_far.total, len(so_far.sources)),
                )
        except MeshError as error:
            if not error.try_next() and not isinstance(error, ModelNotFound):
                _say(f"{wanted.ref} cannot be replicated: {error.message} {error.next_step}")
                return
            _say(f"{wanted.ref} is not here yet: {error.message} Next try in {pause:.0f} s.")
            await trio.sleep(pause)
            pause = min(2 * pause, MAX_REPLICATION_PAUSE)
        else:
            _say(f"{wanted.ref} is fetched, verified and served here too (model {model}).")
            return


async def _tell(node: Node, home: Path) -> None:
    _say(banner(await node.status(), node.url, node.offers, home, node.has_keys))
    # All that was loaded stays: walking it at every full collection cost 5 % of a request's time.
    gc.collect()
    gc.freeze()
    _say(reachability_line(await node.reachable_at(), node.peer_id))
    await trio.sleep_forever()


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    with suppress(OSError):  # nobody reads on: a node is no worse for that
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
