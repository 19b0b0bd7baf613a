"""MeshNode: a node inside a Python program, called from asyncio or trio alike.

It is a thin face of `open_node`, which runs in a thread of its own; nothing heavy is loaded before
`start`.  It sets no signal handlers and configures no logging: those are the program's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from llmesh.core.amount import Amount
from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Result
from llmesh.core.reference import ModelRef
from llmesh.errors import ValidationFailed
from llmesh.node.extra import missing_extra
from llmesh.node.faults import STOPPED, NodeStateError

if TYPE_CHECKING:
    from typing import Unpack

    from llmesh.mesh.download import Report
    from llmesh.node.bridge import Bridge
    from llmesh.node.config import NodeConfig, NodeOptions
    from llmesh.node.running import Node

__all__ = ["MeshNode"]

R = TypeVar("R")


class MeshNode:
    """One node: `start` it, deploy and ask, `stop` it, or use it as an `async with` block.

    Options are those of the command line, as keywords; what is not given comes from the `LLMESH_*`
    variables and the file LLMESH_CONFIG.  A node starts once; after `stop` make a new one.  Calls
    raise NodeStateError before `start` and after `stop`, and otherwise the errors of llmesh.errors.
    A cancelled call cancels its work on the node.  A program that ends without `stop` is followed by
    its node within seconds.
    """

    def __init__(self, **options: Unpack[NodeOptions]) -> None:
        """Raises ValidationFailed for a bad option, ImportError without the extra [node]."""
        fault = missing_extra()
        if fault is not None:
            raise ImportError(fault)
        self._options = options
        self._bridge: Bridge[Node] | None = None
        self._node: Node | None = None
        self._config()

    async def start(self, **options: Unpack[NodeOptions]) -> None:
        """Start, with more options if given; returns once requests are answered.

        Raises StartRefused, a RuntimeError that says what to do, where a port is taken, the data
        directory held by another node or a model bad; the same MeshNode may then try again.
        Cancelling gives the start up.
        """
        from llmesh.node.bridge import Bridge

        if self._bridge is not None:
            raise NodeStateError(
                STOPPED
                if self._bridge.ended
                else "This node is started already; give its options to MeshNode(...) or to the first start."
            )
        self._options.update(options)
        config = self._config()
        bridge = self._bridge = Bridge(lambda: _open(config))
        try:
            self._node = await bridge.start()
        except BaseException:
            self._bridge = None
            raise

    async def stop(self) -> None:
        """Finish running inference (2 s at most), withdraw the offers, and end; at most five seconds.

        A second time, or before `start`, it does nothing.  Raises what broke the node, if it broke.
        """
        if self._bridge is not None:
            await self._bridge.stop()

    async def wait(self) -> None:
        """Wait until the node has stopped; raises what broke it, if it broke."""
        await self._running()[0].wait()

    async def deploy_model(
        self,
        model_path: str | Path | bytes,
        name: str | None = None,
        fee: str | float | Decimal | Amount = 0,
        version: str = "1.0.0",
        description: str = "",
    ) -> ModelId:
        """Serve a model to the mesh: a folder, an `.onnx` file, or a `.zip` or `.tar` of a folder.

        `model_path` may also be the bytes of such a file.  Without a name it takes the folder's.  `fee`
        is MESH per inference.  Raises ValidationFailed for what is not a model, InsufficientStake
        below the mesh's minimum, Conflict where another model has the name and version here, TooLarge
        where the store is full.
        """
        amount = Amount.parse(fee)
        if not isinstance(model_path, str | Path | bytes) or not str(model_path):
            raise ValidationFailed(f"model_path is the path or the bytes of a model, not {model_path!r}.")
        source = model_path if isinstance(model_path, bytes) else Path(model_path)
        _, node = self._running()
        return await self._call(lambda: node.deploy(source, name, amount, version, description))

    async def fetch_model(self, ref: str, report: Report | None = None) -> ModelId:
        """Fetch a model of the mesh into this node's store, verified, from all peers that have it.

        `ref` is `name`, `name:version` or `name@id`.  `report` hears of the progress, in the node's
        thread: bytes done and in all, bytes per second, sources.  Cancelled or killed, the next call
        goes on where this one ended.  Raises ModelNotFound, NodeUnreachable, NodeBusy, TooLarge over
        the store's quota, Conflict where the disk is full.
        """
        wanted = ModelRef.parse(ref)
        _, node = self._running()
        return await self._call(lambda: node.fetch(wanted, report or _ignore))

    async def request_inference(
        self,
        model_name: str,
        input_data: Mapping[str, Value] | str,
        timeout: float = 30,
        max_fee: str | float | Decimal | Amount | None = None,
    ) -> Result:
        """Run one inference on whoever of the mesh offers the model; a bare text is {"text": text}.

        `timeout` in seconds; `max_fee` in MESH is the most it may cost.  Raises ModelNotFound,
        RequestTimeout, ValidationFailed, NodeUnreachable and the other errors of llmesh.errors.
        """
        most = None if max_fee is None else Amount.parse(max_fee)
        _, node = self._running()
        return await self._call(lambda: node.request(model_name, input_data, timeout, most))

    @property
    def node_id(self) -> str:
        """The peer id others know this node by."""
        return self._running()[1].peer_id

    @property
    def url(self) -> str:
        """Where its gateway listens, such as http://127.0.0.1:8080."""
        return self._running()[1].url

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where other nodes dial it, as they are given to `bootstrap`."""
        return self._running()[1].dial_addresses

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        if self._node is None or self._bridge is None:
            return "<MeshNode, not started>"
        state = "stopped" if self._bridge.ended else self._node.url
        return f"<MeshNode {self._node.peer_id} {state}>"

    def _config(self) -> NodeConfig:
        from llmesh.node.sources import configure

        return configure(self._options, os.environ)

    def _running(self) -> tuple[Bridge[Node], Node]:
        if self._bridge is None or self._node is None:
            raise NodeStateError("This node has not been started; first: await node.start()")
        return self._bridge, self._node

    async def _call(self, work: Callable[[], Awaitable[R]]) -> R:
        return await self._running()[0].call(work)


def _ignore(_: object) -> None:
    """Nobody wants to know."""


@asynccontextmanager
async def _open(config: NodeConfig) -> AsyncIterator[Node]:
    from llmesh.node.open import open_node  # takes a second; here it does not hold up the caller's loop

    async with open_node(config) as node:
        yield node
