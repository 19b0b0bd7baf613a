"""open_node: every room of the house put together, for a trio program; MeshNode and the CLI wrap it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import trio
from llmesh_sdk.serving import serving
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh.demo import GPT_MINI, SENTIMENT_ANALYZER
from llmesh.errors import MeshError
from llmesh.gateway.server import serve
from llmesh.mesh.announcer import Announcer
from llmesh.node.config import NodeConfig
from llmesh.node.drain import Drain
from llmesh.node.faces import network_app, owner_app
from llmesh.node.faults import StartRefused, lone_errors
from llmesh.node.ground import open_ground, worker_settings
from llmesh.node.home import open_home
from llmesh.node.owner import owner_socket
from llmesh.node.ports import gateway_socket
from llmesh.node.rooms import open_rooms
from llmesh.node.running import Node
from llmesh.node.values import Deployment
from llmesh.runtime.workers import probe_workers

__all__ = ["BUDGET", "open_node"]

_log = logging.getLogger(__name__)

BUDGET = 5.0
"""Seconds that a shutdown may take in all."""
GRACE = 2.0
WITHDRAWAL = 0.5

_DEMO = (Deployment(SENTIMENT_ANALYZER, "sentiment-analyzer"), Deployment(GPT_MINI, "gpt-mini"))


@asynccontextmanager
async def open_node(config: NodeConfig) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts.

    Raises StartRefused for ports, keys, folders and models that will not do.  Leaving, also by a
    cancel, lets running inference finish for two seconds, withdraws the node's offers, and ends
    everything within five.
    """
    stop = trio.Event()
    with lone_errors():
        async with trio.open_nursery() as nursery:
            node: Node = await nursery.start(_run, config, stop)
            try:
                yield node
            finally:
                stop.set()


async def _run(config: NodeConfig, stop: trio.Event, *, task_status: TaskStatus[Node]) -> None:
    """The whole life of a node; once started it ends by `stop` alone, in order, within the budget."""
    drain = Drain()
    with (
        open_home(config.data_dir) as home,
        closing(gateway_socket(config)) as listener,
        owner_socket(home.folder) as owners,
        serving(),
        trio.CancelScope() as life,
    ):
        async with (
            open_ground(config, home) as ground,
            open_rooms(ground, drain) as rooms,
            _withdrawing(rooms.announcer),
            trio.open_nursery() as nursery,
        ):
            node = Node(rooms, drain)
            await _deploy(config, node)
            await node.restore()
            nursery.start_soon(_probe, config, node)
            closed = trio.Event()
            network = network_app(config, node, rooms.keys, listener)
            node.url = await nursery.start(serve, network, listener, closed)
            own = owner_app(home, node, rooms.keys, node.wallet)
            await nursery.start(serve, own, owners, closed)
            with home.published({"pid": os.getpid(), **node.whereabouts()}):
                task_status.started(node)
                life.shield = True
                await stop.wait()
            life.deadline = trio.current_time() + BUDGET
            closed.set()
            with trio.move_on_after(GRACE):
                await drain.close()


async def _probe(config: NodeConfig, node: Node) -> None:
    """Learn what this machine's workers can do, beside the start, which need not wait for it."""
    try:
        node.abilities = await probe_workers(worker_settings(config))
    except MeshError as error:
        _log.error("Models cannot be run on this machine: %s", error.message)


@asynccontextmanager
async def _withdrawing(announcer: Announcer) -> AsyncIterator[None]:
    """However the block ends, what was announced in it is withdrawn, for half a second at most."""
    try:
        yield
    finally:
        with trio.move_on_after(WITHDRAWAL) as cleanup:
            cleanup.shield = True
            await announcer.withdraw()


async def _deploy(config: NodeConfig, node: Node) -> None:
    """The models to serve from the start.  Raises StartRefused for one that will not do."""
    for model in (*(_DEMO if config.demo else ()), *config.deploy):
        try:
            await node.serve(model.path, model.name, model.fee, model.version)
        except MeshError as error:
            raise StartRefused(
                f"The model {model.path} cannot be served: {error.message} {error.next_step}"
            ) from error
